/* A server's title -> a safe file name, unique in its folder; which names are scratch; which suffixes are taken. Pure:
 * no disk, no clock, no state; the callers know which names are in use. */
#include "fs/name.h"

#include <ctype.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/buf.h"
#include "client/base/cleanup.h"

enum {
	SUFFIX_BYTES_MAX = 10, /* of what we keep as an extension when a name is cut or told apart */
	QUALIFIER_BYTES_MAX = 100,
	TMP_RANDOM_LENGTH = 6, /* mkstemp(3)'s XXXXXX */
	FORMATS_BYTES_MAX = 4096,
};

/* ---- characters -------------------------------------------------------------------------------------------- */

/* The length in bytes of the well-formed UTF-8 character at s, and the character; 0: there is none. Ends at a NUL by
 * itself, which continues no character. */
static int read_character(const char *s, uint32_t *ret)
{
	const unsigned char *b = (const unsigned char *)s;
	static const uint32_t least[] = { 0, 0, 0x80, 0x800,
					  0x10000 }; /* what needs that many bytes: no overlong forms */
	int length = b[0] < 0x80 ? 1 : b[0] < 0xc2 ? 0 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 0;

	if (length <= 1) {
		*ret = b[0];
		return length;
	}
	uint32_t c = b[0] & (0xffU >> (length + 1));
	for (int i = 1; i < length; i++) {
		if ((b[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (b[i] & 0x3f);
	}
	if (c < least[length] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	*ret = c;
	return length;
}

/* Characters that would forge a line in a terminal or show a name in another order than it has. */
static bool is_deceptive(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c <= 0x9f) || c == 0x061c || c == 0x200e || c == 0x200f || c == 0x2028 ||
	       c == 0x2029 || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

/* The most bytes, at most `most`, of a well-formed text that end between two characters. */
static size_t cut_between_characters(const char *text, size_t most)
{
	size_t len = strlen(text);

	if (len <= most)
		return len;
	while (most > 0 && ((unsigned char)text[most] & 0xc0) == 0x80)
		most--;
	return most;
}

/* ".pdf" in "a.pdf": a short run of letters and digits after the last dot, which does not begin the name. Else the
 * end of the name: "v2.0 final" has no extension that anybody would miss. */
static const char *find_extension(const char *name)
{
	const char *end = name + strlen(name);
	const char *dot = strrchr(name, '.');

	if (!dot || dot == name || dot[1] == '\0' || end - dot - 1 > SUFFIX_BYTES_MAX)
		return end;
	for (const char *s = dot + 1; *s; s++) {
		if (!isalnum((unsigned char)*s))
			return end;
	}
	return dot;
}

/* stem + middle + extension of `name`, the stem cut so that all fits. */
static void put_together(const char *name, const char *extension, const char *middle, char ret[NAME_BYTES_MAX + 1])
{
	size_t middle_len = strlen(middle), extension_len = strlen(extension);
	size_t stem_len = (size_t)(extension - name);

	if (stem_len + middle_len + extension_len > NAME_BYTES_MAX)
		stem_len = cut_between_characters(name, NAME_BYTES_MAX - middle_len - extension_len);
	memcpy(ret, name, stem_len);
	memcpy(ret + stem_len, middle, middle_len);
	memcpy(ret + stem_len + middle_len, extension, extension_len + 1);
}

/* ---- names ------------------------------------------------------------------------------------------------- */

void name_make_safe(const char *title, char ret[NAME_BYTES_MAX + 1])
{
	size_t len = strlen(title);
	CLEANUP(text_release) char *long_one = NULL;
	char short_one[1024];
	char *whole = short_one;

	if (len == 0) {
		memcpy(ret, "unnamed", sizeof("unnamed"));
		return;
	}
	if (len + 1 >= sizeof(short_one)) {
		whole = long_one = malloc(len + 2);
		if (!whole) { /* without memory for all of it, the beginning has to do */
			whole = short_one;
			len = sizeof(short_one) - 2;
		}
	}
	size_t at = 0;
	if (title[0] == '.')
		whole[at++] = '_'; /* a hidden name would not be seen in a listing, and might be one of ours */
	for (size_t i = 0; i < len;) {
		uint32_t c;
		int n = read_character(title + i, &c);
		bool is_good = n > 0 && c != '/' && !is_deceptive(c) && i + (size_t)n <= len;
		if (is_good) {
			memcpy(whole + at, title + i, (size_t)n);
			at += (size_t)n;
		} else {
			whole[at++] = '_';
		}
		i += n > 0 ? (size_t)n : 1;
	}
	whole[at] = '\0';
	put_together(whole, find_extension(whole), "", ret);
}

bool name_is_safe(const char *title)
{
	size_t len = 0;

	for (; title[len]; len++) {
		if (title[len] < 0x20 || title[len] > 0x7e || title[len] == '/' || len == NAME_BYTES_MAX)
			return false;
	}
	return len > 0 && title[0] != '.';
}

void name_tell_apart(const char *safe_name, const char *id, int length, char ret[NAME_BYTES_MAX + 1])
{
	char middle[3 + 64 + 2] = " (";
	char digits[64];
	int count = 0;

	if (length > (int)sizeof(digits))
		length = (int)sizeof(digits);
	for (size_t i = strlen(id); i > 0 && count < length; i--) {
		if (isalnum((unsigned char)id[i - 1]))
			digits[count++] = id[i - 1];
	}
	size_t at = 2;
	while (count > 0)
		middle[at++] = digits[--count]; /* they were taken from the end */
	middle[at++] = ')';
	middle[at] = '\0';
	put_together(safe_name, find_extension(safe_name), middle, ret);
}

void name_qualify(const char *safe_name, const char *qualifier, char ret[NAME_BYTES_MAX + 1])
{
	char safe[NAME_BYTES_MAX + 1];
	char middle[3 + QUALIFIER_BYTES_MAX + 2] = " (";

	name_make_safe(qualifier, safe);
	size_t len = cut_between_characters(safe, QUALIFIER_BYTES_MAX);
	memcpy(middle + 2, safe, len);
	memcpy(middle + 2 + len, ")", 2);
	put_together(safe_name, safe_name + strlen(safe_name), middle, ret); /* folders have no extension */
}

int name_check(const char *name)
{
	if (strlen(name) > NAME_BYTES_MAX)
		return -ENAMETOOLONG;
	if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return -EINVAL;
	while (*name) {
		uint32_t c;
		int n = read_character(name, &c);
		if (n == 0 || c == '/' || is_deceptive(c))
			return -EINVAL;
		name += n;
	}
	return 0;
}

/* ---- rules ------------------------------------------------------------------------------------------------- */

struct name_rules {
	char *ignore_text; /* owned; cut at the separators */
	char **ignore;     /* into it; ends with NULL; owned */
	bool takes_any;
	char *only;         /* " pdf png ", instead of whatever list; NULL: the service's or the session's */
	char *more, *fewer; /* " xlsx ", added to and taken from the list; "" none */
	char *service;      /* the service's list, " pdf docx " */
	char *shown;        /* for messages */
};

/* Does " pdf png " hold the word? Letter case does not matter; .tif is .tiff. */
static bool list_has(const char *list, const char *word, size_t len)
{
	for (const char *s = list; s && *s;) {
		s += strspn(s, " ");
		size_t n = strcspn(s, " ");
		if (n == len && n > 0 && strncasecmp(s, word, len) == 0)
			return true;
		s += n;
	}
	return false;
}

static bool list_has_suffix(const char *list, const char *suffix)
{
	if (list_has(list, suffix, strlen(suffix)))
		return true;
	if (strcasecmp(suffix, "tif") == 0)
		return list_has(list, "tiff", 4);
	return strcasecmp(suffix, "tiff") == 0 && list_has(list, "tif", 3);
}

/* "pdf" of "a.pdf"; NULL for "a", ".pdf" and "a.": what begins with its only dot is hidden, not of that kind. */
static const char *find_suffix(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && dot != name && dot[1] ? dot + 1 : NULL;
}

static bool is_suffix_listed(const struct name_rules *r, const char *session_formats, const char *suffix)
{
	const char *base = r->only ? r->only : session_formats ? session_formats : r->service;

	if (list_has_suffix(r->fewer, suffix))
		return false;
	return list_has_suffix(base, suffix) || list_has_suffix(r->more, suffix);
}

bool name_is_accepted(const struct name_rules *r, const char *session_formats, const char *name)
{
	const char *suffix = find_suffix(name);

	if (r->takes_any)
		return true;
	return suffix && is_suffix_listed(r, session_formats, suffix);
}

static bool is_alnum_run(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (!isalnum((unsigned char)s[i]))
			return false;
	}
	return true;
}

/* What a program made with mkstemp("NAME.XXXXXX"), as rsync does with a dot before NAME. */
static bool ends_as_mkstemp(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && dot != name && strlen(dot + 1) == TMP_RANDOM_LENGTH && is_alnum_run(dot + 1, TMP_RANDOM_LENGTH);
}

/* Names that editors, browsers, copying programs and desktops give to what is not a document (yet). */
static bool is_of_a_program(const char *name)
{
	static const char *const patterns[] = {
		".goutputstream-*",
		"._*",
		".~*",
		".#*",
		"*.part",
		"*.partial",
		"*.partial~",
		"*.crdownload",
		"*.download",
		"*.filepart",
		"*.tmp",
		"*~",
		"~$*",
		".~lock.*#",
		"#*#",
		"*.sw?",
		"4913",
		"Thumbs.db",
		"desktop.ini",
		"autorun.inf",
		"__MACOSX",
		"@eaDir",
		".fuse_hidden*",
		".nfs*",
		".Trash",
		".Trash-*",
		".DS_Store",
	};

	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		if (fnmatch(patterns[i], name, FNM_CASEFOLD | FNM_NOESCAPE) == 0)
			return true;
	}
	if (strchr(name, '.'))
		return false;
	if (strncmp(name, "tmp", 3) == 0) /* Python's NamedTemporaryFile */
		return true;
	return strlen(name) == 3 + TMP_RANDOM_LENGTH && strncmp(name, "sed", 3) == 0 &&
	       is_alnum_run(name + 3, TMP_RANDOM_LENGTH);
}

bool name_is_scratch(const struct name_rules *r, const char *name)
{
	for (char **pattern = r->ignore; pattern && *pattern; pattern++) {
		if (fnmatch(*pattern, name, 0) == 0)
			return true;
	}
	if (is_of_a_program(name))
		return true;
	if (name[0] != '.')
		return false;
	const char *suffix = find_suffix(name);
	if (suffix && is_suffix_listed(r, NULL, suffix))
		return false;
	/* Where any suffix is taken, a hidden name still has to have one of its own. */
	return !suffix || !r->takes_any || ends_as_mkstemp(name);
}

const char *name_rules_formats(const struct name_rules *r)
{
	return r->shown;
}

/* ---- reading the rules ------------------------------------------------------------------------------------- */

static int split_ignore(struct name_rules *r, const char *ignore)
{
	size_t count = 0;

	r->ignore_text = strdup(ignore ? ignore : "");
	if (!r->ignore_text)
		return -ENOMEM;
	r->ignore = calloc(strlen(r->ignore_text) / 2 + 2, sizeof(*r->ignore));
	if (!r->ignore)
		return -ENOMEM;
	char *rest = NULL;
	for (char *p = strtok_r(r->ignore_text, ": ", &rest); p; p = strtok_r(NULL, ": ", &rest))
		r->ignore[count++] = p;
	return 0;
}

static int wrong_formats(struct buf *why, const char *word, size_t len, const char *what)
{
	if (why)
		buf_addf(why, "formats: '%.*s' %s", (int)(len > 80 ? 80 : len), word, what);
	return -EINVAL;
}

/* "+xlsx,-doc", "any" or "pdf,png" into the three lists. */
static int split_formats(struct name_rules *r, const char *formats, struct buf *why)
{
	CLEANUP(buf_release) struct buf only = BUF(FORMATS_BYTES_MAX);
	CLEANUP(buf_release) struct buf more = BUF(FORMATS_BYTES_MAX);
	CLEANUP(buf_release) struct buf fewer = BUF(FORMATS_BYTES_MAX);

	for (const char *s = formats ? formats : ""; *s;) {
		size_t len = strcspn(s, ", ");
		if (len == 0) {
			s++;
			continue;
		}
		const char *word = s;
		s += len;
		if (len == 3 && strncasecmp(word, "any", 3) == 0) {
			r->takes_any = true;
			continue;
		}
		struct buf *list = *word == '+' ? &more : *word == '-' ? &fewer : &only;
		const char *suffix = word + (list != &only);
		size_t suffix_len = len - (list != &only);
		if (suffix_len > 0 && *suffix == '.') {
			suffix++;
			suffix_len--;
		}
		if (suffix_len == 0 || suffix_len > SUFFIX_BYTES_MAX || !is_alnum_run(suffix, suffix_len))
			return wrong_formats(why, word, len, "is not a suffix such as pdf, +xlsx or -doc");
		for (size_t i = 0; i < suffix_len; i++)
			buf_addf(list, "%c", tolower((unsigned char)suffix[i]));
		buf_add(list, " ");
	}
	if (only.len > 0 && (more.len > 0 || fewer.len > 0))
		return wrong_formats(why, formats, strlen(formats),
				     "mixes a whole list with + and -: give one or the other");
	bool has_only = only.len > 0;
	r->more = more.len ? buf_take(&more) : strdup("");
	r->fewer = fewer.len ? buf_take(&fewer) : strdup("");
	r->only = has_only ? buf_take(&only) : NULL;
	if (!r->more || !r->fewer || (has_only && !r->only))
		return -ENOMEM;
	return 0;
}

static int make_shown(struct name_rules *r)
{
	CLEANUP(buf_release) struct buf shown = BUF(3 * FORMATS_BYTES_MAX);
	const char *lists[] = { r->only ? r->only : r->service, r->more };

	if (r->takes_any) {
		r->shown = strdup("any");
		return r->shown ? 0 : -ENOMEM;
	}
	for (int i = 0; i < 2; i++) {
		for (const char *s = lists[i]; *s;) {
			s += strspn(s, " ");
			size_t len = strcspn(s, " ");
			if (len > 0 && !list_has(r->fewer, s, len) && !(i == 1 && list_has(lists[0], s, len))) {
				if (shown.len > 0)
					buf_add(&shown, " ");
				buf_add_bytes(&shown, s, len);
			}
			s += len;
		}
	}
	r->shown = shown.len ? buf_take(&shown) : strdup("");
	return r->shown ? 0 : -ENOMEM;
}

void name_rules_free(struct name_rules *r)
{
	if (!r)
		return;
	free(r->ignore_text);
	free(r->ignore);
	free(r->only);
	free(r->more);
	free(r->fewer);
	free(r->service);
	free(r->shown);
	free(r);
}

static void rules_release(struct name_rules **r)
{
	name_rules_free(*r);
}

int name_rules_new(const char *ignore, const char *service_formats, const char *formats, struct buf *why,
		   struct name_rules **ret)
{
	CLEANUP(rules_release) struct name_rules *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->service = strdup(service_formats ? service_formats : "");
	if (!r->service)
		return -ENOMEM;
	int e = split_ignore(r, ignore);
	if (e == 0)
		e = split_formats(r, formats, why);
	if (e == 0)
		e = make_shown(r);
	if (e < 0)
		return e;
	*ret = r;
	r = NULL;
	return 0;
}
