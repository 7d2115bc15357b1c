/* What a listing is made of.
 *
 * A folder may hold 100,000 documents, and the listing is what stays in memory of each. So a document is one packed
 * record in an arena: varying numbers, the hash as bytes, its texts. What repeats (status, type, workspace, ...) stands
 * once as a "kind" that records name by number. Its JSON goes to an unlinked file. With a UUID for an id and a name of
 * 24 letters this comes to some 130 bytes a document, the way from an id to it included.
 *
 *   listing --> records (shared by renewals) --> arena, kinds, words, by_id
 *                                            \-> json_file (shared by patches too)
 *
 * On a disk a listing is the same bytes: a head, then each of these arrays. Whoever reads it back checks all of it, so that
 * no damage goes further than "not remembered". */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/index.h"
#include "client/base/log.h"
#include "client/base/slots.h"
#include "client/base/sum.h"

#define JSON_PENDING_BYTES 262144
#define JSON_BYTES_MAX (16 << 20)

/* ---- the file of JSON records ------------------------------------------------------------------------------- */

/* What stands before each record's text. */
struct json_head {
	uint32_t len;
	uint32_t sum; /* of the text: what a crash left half written is no record */
};

struct json_file {
	atomic_int refs;
	int fd;
	pthread_mutex_t lock; /* guards what follows */
	off_t end;
	bool has_failed;                    /* said once in the log; nothing more is kept */
	char name[LISTING_JSON_NAME_BYTES]; /* "": it has none yet and ends with us */
};

static struct json_file *listing_json_file(const struct listing *l);

static int unlinked_file(const char *dir)
{
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct buf path = BUF(PATH_MAX);

	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
		return fd < 0 ? -errno : fd;
	/* A file system without O_TMPFILE. */
	buf_addf(&path, "%s/.listing.XXXXXX", dir);
	CLEANUP(text_release) char *name = buf_take(&path);
	if (!name)
		return -ENAMETOOLONG;
	fd = mkostemp(name, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	(void)unlink(name); /* a name left behind harms nobody */
	return fd;
}

/* Takes fd. NULL: no memory. */
static struct json_file *json_file_of(int fd, off_t end)
{
	struct json_file *f = calloc(1, sizeof(*f));

	if (!f) {
		(void)close(fd); /* nothing was written through it */
		return NULL;
	}
	atomic_init(&f->refs, 1);
	f->fd = fd;
	f->end = end;
	(void)pthread_mutex_init(&f->lock, NULL); /* can't fail on Linux */
	return f;
}

static int json_file_new(const char *dir, off_t end, struct json_file **ret)
{
	int fd = unlinked_file(dir);
	struct json_file *f = fd < 0 ? NULL : json_file_of(fd, end);

	if (!f)
		return fd < 0 ? fd : -ENOMEM;
	*ret = f;
	return 0;
}

static struct json_file *json_file_ref(struct json_file *f)
{
	if (f)
		atomic_fetch_add(&f->refs, 1);
	return f;
}

static void json_file_unref(struct json_file *f)
{
	if (!f || atomic_fetch_sub(&f->refs, 1) != 1)
		return;
	(void)close(f->fd); /* of a cache: nothing is lost that can't be asked for again */
	pthread_mutex_destroy(&f->lock);
	free(f);
}

/* Writes whole records behind the others and returns where they begin. The place is theirs even when the disk is full:
 * what can't be written reads as zeroes, and so as absent. */
static off_t json_file_append(struct json_file *f, const char *bytes, size_t len)
{
	SCOPED_LOCK(&f->lock);
	off_t at = f->end;

	for (size_t done = 0; done < len && !f->has_failed;) {
		ssize_t n = pwrite(f->fd, bytes + done, len - done, at + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			log_warning("listing: records can't be kept: %s", strerror(n < 0 ? errno : ENOSPC));
			f->has_failed = true;
			break;
		}
		done += (size_t)n;
	}
	f->end += (off_t)len;
	return at;
}

static int read_exactly(int fd, void *bytes, size_t len, off_t at)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (char *)bytes + done, len - done, at + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

static int json_file_read(struct json_file *f, off_t at, struct buf *ret)
{
	struct json_head head = { 0 };
	int r = read_exactly(f->fd, &head, sizeof(head), at);

	if (r < 0)
		return r;
	if (!head.len || head.len > JSON_BYTES_MAX)
		return -ENODATA;
	CLEANUP(text_release) char *text = malloc(head.len);
	if (!text)
		return -ENOMEM;
	r = read_exactly(f->fd, text, head.len, at + (off_t)sizeof(head));
	if (r < 0)
		return r;
	if ((uint32_t)sum_bytes(0, text, head.len) != head.sum || memchr(text, 0, head.len))
		return -ENODATA; /* half written */
	buf_add_bytes(ret, text, head.len);
	return buf_text(ret) ? 0 : -ENOMEM;
}

/* Appends a record's head and text; b is marked as failed when there is no room. */
static void add_json(struct buf *b, const char *text, size_t len)
{
	struct json_head head = { .len = (uint32_t)len, .sum = (uint32_t)sum_bytes(0, text, len) };

	buf_add_bytes(b, &head, sizeof(head));
	buf_add_bytes(b, text, len);
}

/* ---- its name ------------------------------------------------------------------------------------------------ */

static int random_name(char ret[LISTING_JSON_NAME_BYTES])
{
	unsigned char bytes[(LISTING_JSON_NAME_BYTES - 1) / 2];

	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		return -EIO;
	for (size_t i = 0; i < sizeof(bytes); i++)
		(void)snprintf(ret + 2 * i, 3, "%02x", bytes[i]);
	return 0;
}

static int path_of(const char *dir, const char *name, char ret[PATH_MAX])
{
	int n = snprintf(ret, PATH_MAX, "%s/%s", dir, name);

	return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

/* For file systems that can't give an unlinked file a name. */
static int copy_file(int from, off_t bytes, const char *to)
{
	CLEANUP(fd_close) int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	CLEANUP(text_release) char *chunk = malloc(JSON_PENDING_BYTES);
	int r = fd < 0 ? -errno : chunk ? 0 : -ENOMEM;

	for (off_t at = 0; r == 0 && at < bytes;) {
		size_t len = bytes - at < JSON_PENDING_BYTES ? (size_t)(bytes - at) : JSON_PENDING_BYTES;
		ssize_t n = pread(from, chunk, len, at);
		if (n == 0)
			break; /* what could not be written is absent in the copy as well */
		if (n < 0 || pwrite(fd, chunk, (size_t)n, at) != n)
			r = n < 0 ? -errno : -ENOSPC;
		else
			at += n;
	}
	if (r < 0 && fd >= 0)
		(void)unlink(to); /* half a copy */
	return r;
}

int listing_keep_json(const struct listing *l, const char *dir, char ret_name[LISTING_JSON_NAME_BYTES])
{
	struct json_file *f = listing_json_file(l);
	char name[LISTING_JSON_NAME_BYTES] = "", path[PATH_MAX], own[64];
	struct stat st;

	if (!f) {
		ret_name[0] = '\0';
		return 0;
	}
	SCOPED_LOCK(&f->lock);
	if (f->name[0] && fstat(f->fd, &st) == 0 && st.st_nlink > 0) {
		memcpy(ret_name, f->name, sizeof(f->name));
		return 0;
	}
	int r = random_name(name);
	if (r == 0)
		r = path_of(dir, name, path);
	if (r < 0)
		return r;
	(void)snprintf(own, sizeof(own), "/proc/self/fd/%d", f->fd);
	if (linkat(AT_FDCWD, own, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0)
		memcpy(f->name, name, sizeof(name));
	else
		r = copy_file(f->fd, f->end, path); /* and anew each time: the copy does not grow with the file */
	if (r == 0)
		memcpy(ret_name, name, sizeof(name));
	return r;
}

/* ---- records ------------------------------------------------------------------------------------------------ */

/* What many documents have in common. Words are offsets in `words`, where 0 is "the service did not say". */
enum { WORD_STATUS, WORD_MIME, WORD_SOURCE, WORD_WORKSPACE, WORD_PARSING, WORD_VERSION, WORD_CONFIG, WORD_COUNT };

struct kind {
	uint32_t words[WORD_COUNT];
	uint32_t state;
};

struct records {
	atomic_int refs;
	uint32_t *at; /* where record i begins in the arena; the server's order */
	uint32_t count, room;
	struct buf arena;
	size_t dead_bytes; /* of records that were replaced */
	struct buf words;  /* NUL-terminated texts */
	struct kind *kinds;
	uint32_t kind_count, kind_room;
	struct slots by_id, by_word, by_kind; /* by_word: offsets in words */
	struct json_file *json;               /* NULL: none kept */
	pthread_mutex_t annex_lock;           /* guards the annex; the rest never changes once it is shared */
	void *annex;
	size_t annex_bytes;
};

/* A record: flags, kind, then what the flags name, all numbers packed; the hash as 32 bytes; then texts. */
enum {
	HAS_SIZE = 1,
	HAS_CREATED = 2,
	HAS_PAGES = 4,
	HAS_PARSED = 8, /* parsing.updated_ms */
	HAS_JSON = 16,
	HAS_SHA256 = 32,
	HAS_SOURCE_URL = 64,
	HAS_ERROR = 128,
	EXTRA_SHIFT = 8, /* how many extras: 0..EXTRA_MAX */
};

enum { EXTRA_MAX = DOCUMENT_EXTRA_MAX };

static void pack_number(struct buf *b, uint64_t n)
{
	unsigned char bytes[10];
	size_t len = 0;

	for (; n >= 0x80; n >>= 7)
		bytes[len++] = (unsigned char)(n | 0x80);
	bytes[len++] = (unsigned char)n;
	buf_add_bytes(b, bytes, len);
}

static uint64_t unpack_number(const unsigned char **p)
{
	uint64_t n = 0;

	for (int shift = 0;; shift += 7) {
		unsigned char c = *(*p)++;
		n |= (uint64_t)(c & 0x7f) << shift;
		if (!(c & 0x80))
			return n;
	}
}

static uint64_t zigzag(int64_t n)
{
	return ((uint64_t)n << 1) ^ (uint64_t)(n >> 63);
}

static int64_t unzigzag(uint64_t n)
{
	return (int64_t)(n >> 1) ^ -(int64_t)(n & 1);
}

static const char *unpack_text(const unsigned char **p)
{
	const char *text = (const char *)*p;

	*p += strlen(text) + 1;
	return text;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static bool read_hash(const char *hex, unsigned char ret[32])
{
	for (int i = 0; i < 32; i++) {
		int high = hex_digit(hex[2 * i]);
		int low = high < 0 ? -1 : hex_digit(hex[2 * i + 1]);
		if (low < 0)
			return false;
		ret[i] = (unsigned char)(high << 4 | low);
	}
	return hex[64] == '\0';
}

/* Eight digits at a time: a listing of a large folder unpacks a hundred thousand of these. */
static void write_hash(const unsigned char *bytes, char ret_hex[65])
{
	for (int i = 0; i < 8; i++) {
		uint32_t word;
		memcpy(&word, bytes + 4 * i, sizeof(word));
		uint64_t v = le32toh(word);
		/* Each byte in 16 bits, then each half of one in 8, the first digit lowest. */
		v = (v | v << 16) & UINT64_C(0x0000ffff0000ffff);
		v = (v | v << 8) & UINT64_C(0x00ff00ff00ff00ff);
		v = (v >> 4 & UINT64_C(0x000f000f000f000f)) | (v & UINT64_C(0x000f000f000f000f)) << 8;
		uint64_t is_letter = (v + UINT64_C(0x0606060606060606)) >> 4 & UINT64_C(0x0101010101010101);
		v = htole64(v + UINT64_C(0x3030303030303030) + is_letter * ('a' - '0' - 10));
		memcpy(ret_hex + 8 * i, &v, sizeof(v));
	}
	ret_hex[64] = '\0';
}

static const char *record_word(const struct records *rs, const struct kind *k, int which)
{
	return k->words[which] ? rs->words.data + k->words[which] : NULL;
}

/* What comes before the texts. json_at: -1 when there is none. Returns where the texts begin. */
static const unsigned char *unpack_head(const struct records *rs, uint32_t i, struct document *ret, unsigned *ret_flags,
					int64_t *ret_json_at)
{
	const unsigned char *p = (const unsigned char *)rs->arena.data + rs->at[i];
	unsigned flags = (unsigned)unpack_number(&p);
	const struct kind *k = &rs->kinds[unpack_number(&p)];

	ret->status = record_word(rs, k, WORD_STATUS);
	ret->state = (enum document_state)k->state;
	ret->mime = record_word(rs, k, WORD_MIME);
	ret->source = record_word(rs, k, WORD_SOURCE);
	ret->workspace_id = record_word(rs, k, WORD_WORKSPACE);
	ret->parsing.status = record_word(rs, k, WORD_PARSING);
	ret->parsing.version = record_word(rs, k, WORD_VERSION);
	ret->parsing.config = record_word(rs, k, WORD_CONFIG);
	ret->size_bytes = flags & HAS_SIZE ? unzigzag(unpack_number(&p)) : -1;
	ret->created_ms = flags & HAS_CREATED ? unzigzag(unpack_number(&p)) : -1;
	ret->pages = flags & HAS_PAGES ? (int)unzigzag(unpack_number(&p)) : -1;
	ret->parsing.updated_ms = flags & HAS_PARSED ? unzigzag(unpack_number(&p)) : -1;
	*ret_json_at = flags & HAS_JSON ? (int64_t)unpack_number(&p) : -1;
	ret->sha256 = NULL;
	if (flags & HAS_SHA256) {
		write_hash(p, ret->sha256_text);
		ret->sha256 = ret->sha256_text;
		p += 32;
	}
	*ret_flags = flags;
	return p;
}

/* Returns the end of the record. */
static const unsigned char *unpack_record(const struct records *rs, uint32_t i, struct document *ret,
					  int64_t *ret_json_at)
{
	unsigned flags;
	const unsigned char *p = unpack_head(rs, i, ret, &flags, ret_json_at);

	ret->id = unpack_text(&p);
	ret->filename = unpack_text(&p);
	ret->source_url = flags & HAS_SOURCE_URL ? unpack_text(&p) : NULL;
	ret->error = flags & HAS_ERROR ? unpack_text(&p) : NULL;
	memset(ret->extra, 0, sizeof(ret->extra));
	for (unsigned n = 0; n < flags >> EXTRA_SHIFT; n++) {
		ret->extra[n][0] = unpack_text(&p);
		ret->extra[n][1] = unpack_text(&p);
	}
	return p;
}

/* Passes the numbers of a record's head; where its hash is, if it has one, else its texts. */
static const unsigned char *skip_head(const struct records *rs, uint32_t i, unsigned *ret_flags)
{
	const unsigned char *p = (const unsigned char *)rs->arena.data + rs->at[i];
	unsigned flags = (unsigned)unpack_number(&p);

	(void)unpack_number(&p); /* the kind; then the numbers, which begin with the lowest flag */
	for (unsigned flag = HAS_SIZE; flag <= HAS_JSON; flag <<= 1) {
		if (flags & flag)
			(void)unpack_number(&p);
	}
	*ret_flags = flags;
	return p;
}

/* The id alone: a look-up passes many records and wants nothing else of them. */
static const char *record_id(const struct records *rs, uint32_t i)
{
	unsigned flags;
	const unsigned char *p = skip_head(rs, i, &flags);

	return (const char *)p + (flags & HAS_SHA256 ? 32 : 0);
}

static uint64_t hash_record(const void *owner, uint32_t i)
{
	const struct records *rs = owner;

	return index_hash_text(record_id(rs, i));
}

static bool is_record(const void *owner, uint32_t i, const void *key)
{
	const struct records *rs = owner;

	return strcmp(record_id(rs, i), key) == 0;
}

static uint64_t hash_word(const void *owner, uint32_t i)
{
	const struct records *rs = owner;

	return index_hash_text(rs->words.data + i);
}

static bool is_word(const void *owner, uint32_t i, const void *key)
{
	const struct records *rs = owner;

	return strcmp(rs->words.data + i, key) == 0;
}

static uint64_t hash_of_kind(const struct kind *k)
{
	uint64_t h = k->state;

	for (int i = 0; i < WORD_COUNT; i++)
		h = index_hash_number(h ^ k->words[i]);
	return h;
}

static uint64_t hash_kind(const void *owner, uint32_t i)
{
	const struct records *rs = owner;

	return hash_of_kind(&rs->kinds[i]);
}

static bool is_kind(const void *owner, uint32_t i, const void *key)
{
	const struct records *rs = owner;

	return memcmp(&rs->kinds[i], key, sizeof(struct kind)) == 0; /* it has no padding */
}

static struct records *records_new(void)
{
	struct records *rs = calloc(1, sizeof(*rs));

	if (!rs)
		return NULL;
	atomic_init(&rs->refs, 1);
	rs->arena = BUF(UINT32_MAX - 1);
	rs->words = BUF(UINT32_MAX - 1);
	(void)pthread_mutex_init(&rs->annex_lock, NULL); /* can't fail on Linux */
	return rs;
}

static void records_unref(struct records *rs)
{
	if (!rs || atomic_fetch_sub(&rs->refs, 1) != 1)
		return;
	free(rs->at);
	free(rs->kinds);
	slots_release(&rs->by_id);
	slots_release(&rs->by_word);
	slots_release(&rs->by_kind);
	buf_release(&rs->arena);
	buf_release(&rs->words);
	json_file_unref(rs->json);
	pthread_mutex_destroy(&rs->annex_lock);
	free(rs->annex);
	free(rs);
}

static void records_release(struct records **rs)
{
	records_unref(*rs);
	*rs = NULL;
}

static struct records *records_take(struct records **rs)
{
	struct records *taken = *rs;

	*rs = NULL;
	return taken;
}

static int64_t records_find(const struct records *rs, const char *id)
{
	return slots_find(&rs->by_id, rs, index_hash_text(id), is_record, id);
}

/* The word's offset; it is put there when it is new. */
static int records_word(struct records *rs, const char *text, uint32_t *ret)
{
	if (!text) {
		*ret = 0;
		return 0;
	}
	int64_t found = slots_find(&rs->by_word, rs, index_hash_text(text), is_word, text);
	if (found < 0) {
		if (!rs->words.len)
			buf_add_bytes(&rs->words, "", 1); /* so that no word has offset 0 */
		found = (int64_t)rs->words.len;
		buf_add_bytes(&rs->words, text, strlen(text) + 1);
		if (rs->words.failed || slots_put(&rs->by_word, rs, hash_word, (uint32_t)found) < 0)
			return -ENOMEM;
	}
	*ret = (uint32_t)found;
	return 0;
}

static int records_kind(struct records *rs, const struct document *doc, uint32_t *ret)
{
	const char *const words[WORD_COUNT] = {
		[WORD_STATUS] = doc->status,          [WORD_MIME] = doc->mime,
		[WORD_SOURCE] = doc->source,          [WORD_WORKSPACE] = doc->workspace_id,
		[WORD_PARSING] = doc->parsing.status, [WORD_VERSION] = doc->parsing.version,
		[WORD_CONFIG] = doc->parsing.config,
	};
	struct kind k = { .state = doc->state };

	for (int i = 0; i < WORD_COUNT; i++) {
		int r = records_word(rs, words[i], &k.words[i]);
		if (r < 0)
			return r;
	}
	int64_t found = slots_find(&rs->by_kind, rs, hash_of_kind(&k), is_kind, &k);
	if (found >= 0) {
		*ret = (uint32_t)found;
		return 0;
	}
	if (rs->kind_count == rs->kind_room) {
		uint32_t room = rs->kind_room ? rs->kind_room * 2 : 4;
		struct kind *kinds = realloc(rs->kinds, room * sizeof(*kinds));
		if (!kinds)
			return -ENOMEM;
		rs->kinds = kinds;
		rs->kind_room = room;
	}
	rs->kinds[rs->kind_count] = k;
	if (slots_put(&rs->by_kind, rs, hash_kind, rs->kind_count) < 0)
		return -ENOMEM;
	*ret = rs->kind_count++;
	return 0;
}

static void add_text(struct buf *b, const char *text)
{
	buf_add_bytes(b, text, strlen(text) + 1);
}

static int pack_record(struct records *rs, const struct document *doc, int64_t json_at)
{
	unsigned char sha256[32];
	uint32_t kind = 0;
	unsigned flags = 0, extras = 0;
	struct buf *b = &rs->arena;

	int r = records_kind(rs, doc, &kind);
	if (r < 0)
		return r;
	while (extras < EXTRA_MAX && doc->extra[extras][0] && doc->extra[extras][1])
		extras++;
	flags |= doc->size_bytes >= 0 ? HAS_SIZE : 0;
	flags |= doc->created_ms != -1 ? HAS_CREATED : 0;
	flags |= doc->pages >= 0 ? HAS_PAGES : 0;
	flags |= doc->parsing.updated_ms != -1 ? HAS_PARSED : 0;
	flags |= json_at >= 0 ? HAS_JSON : 0;
	flags |= doc->sha256 && read_hash(doc->sha256, sha256) ? HAS_SHA256 : 0;
	flags |= doc->source_url ? HAS_SOURCE_URL : 0;
	flags |= doc->error ? HAS_ERROR : 0;
	flags |= extras << EXTRA_SHIFT;
	pack_number(b, flags);
	pack_number(b, kind);
	if (flags & HAS_SIZE)
		pack_number(b, zigzag(doc->size_bytes));
	if (flags & HAS_CREATED)
		pack_number(b, zigzag(doc->created_ms));
	if (flags & HAS_PAGES)
		pack_number(b, zigzag(doc->pages));
	if (flags & HAS_PARSED)
		pack_number(b, zigzag(doc->parsing.updated_ms));
	if (flags & HAS_JSON)
		pack_number(b, (uint64_t)json_at);
	if (flags & HAS_SHA256)
		buf_add_bytes(b, sha256, sizeof(sha256));
	add_text(b, doc->id);
	add_text(b, doc->filename ? doc->filename : "");
	if (flags & HAS_SOURCE_URL)
		add_text(b, doc->source_url);
	if (flags & HAS_ERROR)
		add_text(b, doc->error);
	for (unsigned i = 0; i < extras; i++) {
		add_text(b, doc->extra[i][0]);
		add_text(b, doc->extra[i][1]);
	}
	return b->failed ? -ENOMEM : 0;
}

static size_t record_bytes(const struct records *rs, uint32_t i)
{
	struct document doc;
	int64_t json_at;

	return (size_t)(unpack_record(rs, i, &doc, &json_at) - ((const unsigned char *)rs->arena.data + rs->at[i]));
}

/* A document that is there already is replaced in its place. */
static int records_add(struct records *rs, const struct document *doc, int64_t json_at)
{
	if (!doc->id || !doc->id[0])
		return -EINVAL;
	int64_t old = records_find(rs, doc->id);
	if (old < 0 && rs->count == INT_MAX)
		return -ENOMEM;
	if (old < 0 && rs->count == rs->room) {
		uint32_t room = rs->room + rs->room / 2 + 16;
		uint32_t *at = realloc(rs->at, room * sizeof(*at));
		if (!at)
			return -ENOMEM;
		rs->at = at;
		rs->room = room;
	}
	uint32_t begin = (uint32_t)rs->arena.len;
	int r = pack_record(rs, doc, json_at);
	if (r < 0)
		return r;
	if (old >= 0) {
		rs->dead_bytes += record_bytes(rs, (uint32_t)old);
		rs->at[old] = begin;
		return 0;
	}
	rs->at[rs->count] = begin;
	r = slots_put(&rs->by_id, rs, hash_record, rs->count);
	if (r == 0)
		rs->count++;
	return r;
}

/* Gives back what growing took too much of. A failure leaves things as they were. */
static void records_trim(struct records *rs)
{
	if (rs->arena.len && rs->arena.len + 1 < rs->arena.room) {
		char *data = realloc(rs->arena.data, rs->arena.len + 1);
		if (data) {
			rs->arena.data = data;
			rs->arena.room = rs->arena.len + 1;
		}
	}
	if (rs->count && rs->count < rs->room) {
		uint32_t *at = realloc(rs->at, rs->count * sizeof(*at));
		if (at) {
			rs->at = at;
			rs->room = rs->count;
		}
	}
}

/* Everything but the records: words, kinds and the JSON file. */
static int records_copy_base(const struct records *from, struct records *rs)
{
	buf_add_bytes(&rs->words, from->words.data, from->words.len);
	rs->kinds = from->kind_count ? malloc(from->kind_count * sizeof(*rs->kinds)) : NULL;
	if (rs->words.failed || (from->kind_count && !rs->kinds))
		return -ENOMEM;
	if (from->kind_count)
		memcpy(rs->kinds, from->kinds, from->kind_count * sizeof(*rs->kinds));
	rs->kind_count = rs->kind_room = from->kind_count;
	int r = slots_copy(&from->by_word, &rs->by_word);
	if (r == 0)
		r = slots_copy(&from->by_kind, &rs->by_kind);
	rs->json = json_file_ref(from->json);
	return r;
}

/* Records as they are, for a patch that only adds: copying bytes is ten times quicker than hashing every id. */
static int records_copy_all(const struct records *from, struct records *rs)
{
	buf_add_bytes(&rs->arena, from->arena.data, from->arena.len);
	rs->at = from->count ? malloc(from->count * sizeof(*rs->at)) : NULL;
	if (rs->arena.failed || (from->count && !rs->at))
		return -ENOMEM;
	if (from->count)
		memcpy(rs->at, from->at, from->count * sizeof(*rs->at));
	rs->count = rs->room = from->count;
	rs->dead_bytes = from->dead_bytes;
	return slots_copy(&from->by_id, &rs->by_id);
}

/* The records not dropped, packed close. */
static int records_copy_some(const struct records *from, const bool *is_dropped, struct records *rs)
{
	rs->at = from->count ? malloc(from->count * sizeof(*rs->at)) : NULL;
	if (from->count && !rs->at)
		return -ENOMEM;
	rs->room = from->count;
	if (from->by_id.room && slots_new(from->by_id.room, &rs->by_id) < 0)
		return -ENOMEM;
	for (uint32_t i = 0; i < from->count; i++) {
		if (is_dropped[i])
			continue;
		rs->at[rs->count] = (uint32_t)rs->arena.len;
		buf_add_bytes(&rs->arena, from->arena.data + from->at[i], record_bytes(from, i));
		if (rs->arena.failed || slots_put(&rs->by_id, rs, hash_record, rs->count) < 0)
			return -ENOMEM;
		rs->count++;
	}
	return 0;
}

/* ---- listings ----------------------------------------------------------------------------------------------- */

struct listing {
	atomic_int refs;
	struct records *records; /* counted */
	uint64_t serial;
	int64_t asked_ms, as_of_wall_ms;
};

static uint64_t serial_next(void)
{
	static _Atomic uint64_t last;

	return atomic_fetch_add(&last, 1) + 1;
}

/* Takes over the caller's count of rs on success. */
static struct listing *listing_new(struct records *rs, uint64_t serial, int64_t asked_ms, int64_t as_of_wall_ms)
{
	struct listing *l = malloc(sizeof(*l));

	if (!l)
		return NULL;
	*l = (struct listing){ .records = rs, .serial = serial, .asked_ms = asked_ms, .as_of_wall_ms = as_of_wall_ms };
	atomic_init(&l->refs, 1);
	return l;
}

struct listing *listing_ref(struct listing *l)
{
	if (l)
		atomic_fetch_add(&l->refs, 1);
	return l;
}

void listing_unref(struct listing *l)
{
	if (!l || atomic_fetch_sub(&l->refs, 1) != 1)
		return;
	records_unref(l->records);
	free(l);
}

void listing_release(struct listing **l)
{
	listing_unref(*l);
	*l = NULL;
}

int listing_count(const struct listing *l)
{
	return (int)l->records->count;
}

void listing_get(const struct listing *l, int i, struct document *ret)
{
	int64_t json_at;

	assert(i >= 0 && (uint32_t)i < l->records->count);
	(void)unpack_record(l->records, (uint32_t)i, ret, &json_at);
}

void listing_get_names(const struct listing *l, int i, const char **ret_id, const char **ret_filename)
{
	assert(i >= 0 && (uint32_t)i < l->records->count);
	*ret_id = record_id(l->records, (uint32_t)i);
	*ret_filename = *ret_id + strlen(*ret_id) + 1;
}

static bool is_same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

bool document_is_equal(const struct document *a, const struct document *b)
{
	bool is = is_same_text(a->id, b->id) && is_same_text(a->filename, b->filename) &&
		  is_same_text(a->status, b->status) && a->state == b->state && is_same_text(a->sha256, b->sha256) &&
		  a->size_bytes == b->size_bytes && a->created_ms == b->created_ms && is_same_text(a->mime, b->mime) &&
		  is_same_text(a->source, b->source) && is_same_text(a->source_url, b->source_url) &&
		  is_same_text(a->workspace_id, b->workspace_id) && a->pages == b->pages &&
		  is_same_text(a->error, b->error) && is_same_text(a->parsing.status, b->parsing.status) &&
		  is_same_text(a->parsing.version, b->parsing.version) &&
		  is_same_text(a->parsing.config, b->parsing.config) && a->parsing.updated_ms == b->parsing.updated_ms;

	for (size_t i = 0; is && i < sizeof(a->extra) / sizeof(a->extra[0]); i++) {
		is = is_same_text(a->extra[i][0], b->extra[i][0]) && is_same_text(a->extra[i][1], b->extra[i][1]);
		if (!a->extra[i][0])
			break;
	}
	return is;
}

int listing_find(const struct listing *l, const char *id)
{
	return (int)records_find(l->records, id);
}

int listing_find_bytes(const struct listing *l, int from, const char *sha256, int64_t size_bytes)
{
	const struct records *rs = l->records;
	unsigned char hash[32];
	unsigned flags;

	if (!read_hash(sha256, hash))
		return -1;
	for (uint32_t i = (uint32_t)from; i < rs->count; i++) {
		const unsigned char *p = skip_head(rs, i, &flags);
		if (!(flags & HAS_SHA256) || memcmp(p, hash, sizeof(hash)) != 0)
			continue;
		struct document d;
		listing_get(l, (int)i, &d);
		if (d.size_bytes < 0 || d.size_bytes == size_bytes)
			return (int)i;
	}
	return -1;
}

int64_t listing_asked_ms(const struct listing *l)
{
	return l->asked_ms;
}

int64_t listing_as_of_wall_ms(const struct listing *l)
{
	return l->as_of_wall_ms;
}

uint64_t listing_serial(const struct listing *l)
{
	return l->serial;
}

int listing_read_json(const struct listing *l, int i, struct buf *ret)
{
	struct document doc;
	int64_t json_at = -1;

	assert(i >= 0 && (uint32_t)i < l->records->count);
	(void)unpack_record(l->records, (uint32_t)i, &doc, &json_at);
	if (json_at < 0 || !l->records->json)
		return -ENODATA;
	return json_file_read(l->records->json, json_at, ret);
}

void listing_set_annex(struct listing *l, void *bytes, size_t len)
{
	SCOPED_LOCK(&l->records->annex_lock);

	free(l->records->annex);
	l->records->annex = bytes;
	l->records->annex_bytes = len;
}

void *listing_take_annex(struct listing *l, size_t *ret_len)
{
	SCOPED_LOCK(&l->records->annex_lock);
	void *bytes = l->records->annex;

	l->records->annex = NULL;
	*ret_len = l->records->annex_bytes;
	return bytes;
}

static struct json_file *listing_json_file(const struct listing *l)
{
	return l->records->json;
}

int listing_renew(struct listing *l, int64_t asked_ms, int64_t as_of_wall_ms, struct listing **ret)
{
	struct listing *renewed = listing_new(l->records, l->serial, asked_ms, as_of_wall_ms);

	if (!renewed)
		return -ENOMEM;
	atomic_fetch_add(&l->records->refs, 1);
	*ret = renewed;
	return 0;
}

/* Adds a record of JSON to a file that may be shared; returns where it is, or -1. */
static int64_t keep_json(struct json_file *f, const char *json)
{
	size_t text_bytes = strlen(json);
	CLEANUP(buf_release) struct buf record = BUF(JSON_BYTES_MAX + sizeof(struct json_head));

	if (!text_bytes || text_bytes > JSON_BYTES_MAX)
		return -1;
	add_json(&record, json, text_bytes);
	if (!buf_text(&record))
		return -1; /* the document is worth more than its record */
	return json_file_append(f, record.data, record.len);
}

static int records_add_from(struct records *rs, const struct records *from, uint32_t i)
{
	struct document doc;
	int64_t json_at = -1;

	(void)unpack_record(from, i, &doc, &json_at);
	if (json_at >= 0 && rs->json != from->json) {
		CLEANUP(buf_release) struct buf json = BUF(JSON_BYTES_MAX);
		json_at = json_file_read(from->json, json_at, &json) == 0 ? keep_json(rs->json, buf_text(&json)) : -1;
	}
	return records_add(rs, &doc, json_at);
}

int listing_patch(struct listing *l, const char *const *without, int without_count, struct listing *with,
		  struct listing **ret)
{
	const struct records *old = l->records;
	CLEANUP(records_release) struct records *rs = records_new();
	bool *is_dropped = calloc(old->count + 1, sizeof(*is_dropped));
	bool drops = false;

	if (!rs || !is_dropped) {
		free(is_dropped);
		return -ENOMEM;
	}
	for (int i = 0; i < without_count; i++) {
		int64_t at = records_find(old, without[i]);
		if (at >= 0)
			drops = is_dropped[at] = true;
	}
	int r = records_copy_base(old, rs);
	if (r == 0 && !drops && old->dead_bytes <= old->arena.len / 4)
		r = records_copy_all(old, rs);
	else if (r == 0)
		r = records_copy_some(old, is_dropped, rs);
	free(is_dropped);
	if (r == 0 && with && !rs->json)
		rs->json = json_file_ref(with->records->json);
	for (uint32_t i = 0; r == 0 && with && i < with->records->count; i++)
		r = records_add_from(rs, with->records, i);
	if (r < 0)
		return r;
	records_trim(rs);
	struct listing *patched = listing_new(rs, serial_next(), l->asked_ms, l->as_of_wall_ms);
	if (!patched)
		return -ENOMEM;
	(void)records_take(&rs); /* the listing's now */
	*ret = patched;
	return 0;
}

/* ---- building one ------------------------------------------------------------------------------------------- */

struct listing_builder {
	struct records *records;
	char *scratch_dir;  /* NULL: no JSON is kept */
	struct buf pending; /* JSON not yet in the file */
	off_t pending_at;   /* where it will begin */
	int error;          /* the first failure: what was added after it is incomplete */
};

struct listing_builder *listing_builder_new(const char *scratch_dir)
{
	struct listing_builder *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->pending = BUF(JSON_PENDING_BYTES + JSON_BYTES_MAX + sizeof(struct json_head));
	b->records = records_new();
	if (scratch_dir)
		b->scratch_dir = strdup(scratch_dir);
	if (!b->records || (scratch_dir && !b->scratch_dir)) {
		listing_builder_free(b);
		return NULL;
	}
	return b;
}

static void flush_pending(struct listing_builder *b)
{
	if (!b->pending.len)
		return;
	off_t at = json_file_append(b->records->json, b->pending.data, b->pending.len);
	assert(at == b->pending_at);
	(void)at;
	b->pending_at += (off_t)b->pending.len;
	buf_clear(&b->pending);
}

/* Where the record will stand in the file, or -1: a document is worth more than its record. */
static int64_t builder_keep_json(struct listing_builder *b, const char *json)
{
	size_t text_bytes = json ? strlen(json) : 0;

	if (!text_bytes || text_bytes > JSON_BYTES_MAX || !b->scratch_dir)
		return -1;
	if (!b->records->json) {
		int r = json_file_new(b->scratch_dir, 0, &b->records->json);
		if (r < 0) {
			log_warning("listing: records can't be kept in %s: %s", b->scratch_dir, strerror(-r));
			text_release(&b->scratch_dir);
			return -1;
		}
	}
	size_t before = b->pending.len;
	add_json(&b->pending, json, text_bytes);
	if (!buf_text(&b->pending)) { /* no memory: what was whole before stays */
		b->pending.failed = false;
		b->pending.len = before;
		return -1;
	}
	int64_t at = b->pending_at + (int64_t)before;
	if (b->pending.len >= JSON_PENDING_BYTES)
		flush_pending(b);
	return at;
}

int listing_builder_add(struct listing_builder *b, const struct document *doc, const char *json)
{
	if (!doc->id || !doc->id[0])
		return -EINVAL;
	int r = records_add(b->records, doc, builder_keep_json(b, json));
	if (r < 0 && b->error == 0)
		b->error = r;
	return r;
}

int listing_builder_count(const struct listing_builder *b)
{
	return (int)b->records->count;
}

int listing_builder_finish(struct listing_builder *b, int64_t asked_ms, int64_t as_of_wall_ms, struct listing **ret)
{
	CLEANUP(listing_builder_release) struct listing_builder *owned = b;

	if (b->error < 0)
		return b->error;
	flush_pending(b);
	records_trim(b->records);
	struct listing *l = listing_new(b->records, serial_next(), asked_ms, as_of_wall_ms);
	if (!l)
		return -ENOMEM;
	(void)records_take(&owned->records); /* the listing's now */
	*ret = l;
	return 0;
}

void listing_builder_free(struct listing_builder *b)
{
	if (!b)
		return;
	records_unref(b->records);
	text_release(&b->scratch_dir);
	buf_release(&b->pending);
	free(b);
}

void listing_builder_release(struct listing_builder **b)
{
	listing_builder_free(*b);
	*b = NULL;
}

/* ---- on a disk ---------------------------------------------------------------------------------------------- */

/* Of the head, the records, the words' order or the hash of a text: another one is not read. */
#define PACKED_VERSION 2
#define PACKED_MAGIC UINT64_C(0x31676e6974736c73) /* "slsting1", and tells a machine of another byte order */
#define PACKED_PROBE "0f1e2d3c"                   /* any text: its hash tells whether by_id is still of use */

struct packed_head {
	uint64_t magic;
	uint32_t version, count;
	uint64_t probe_hash;
	uint64_t arena_bytes, words_bytes, dead_bytes;
	int64_t json_end; /* -1: no records of JSON */
	uint32_t kind_count;
	uint32_t id_room, id_used, word_room, word_used, kind_room, kind_used;
	uint32_t reserved;
	uint64_t sum; /* of the head, with 0 here, and all that follows */
};

struct section {
	void *bytes;
	size_t len;
};

enum { SECTION_COUNT = 7 };

static void sections_of(const struct records *rs, struct section ret[SECTION_COUNT])
{
	const struct section list[SECTION_COUNT] = {
		{ rs->arena.data, rs->arena.len },
		{ rs->words.data, rs->words.len },
		{ rs->at, rs->count * sizeof(*rs->at) },
		{ rs->kinds, rs->kind_count * sizeof(*rs->kinds) },
		{ rs->by_id.at, (size_t)rs->by_id.room * SLOT_BYTES },
		{ rs->by_word.at, (size_t)rs->by_word.room * SLOT_BYTES },
		{ rs->by_kind.at, (size_t)rs->by_kind.room * SLOT_BYTES },
	};

	memcpy(ret, list, sizeof(list));
}

static uint64_t sum_packed(struct packed_head head, const struct section sections[SECTION_COUNT])
{
	head.sum = 0;
	uint64_t sum = sum_bytes(PACKED_MAGIC, &head, sizeof(head));

	for (int i = 0; i < SECTION_COUNT; i++)
		sum = sum_bytes(sum, sections[i].bytes, sections[i].len);
	return sum;
}

size_t listing_packed_bytes(const struct listing *l)
{
	struct section sections[SECTION_COUNT];
	size_t bytes = sizeof(struct packed_head);

	sections_of(l->records, sections);
	for (int i = 0; i < SECTION_COUNT; i++)
		bytes += sections[i].len;
	return bytes;
}

int listing_pack(const struct listing *l, listing_put *put, void *arg)
{
	const struct records *rs = l->records;
	struct section sections[SECTION_COUNT];
	struct packed_head head = {
		.magic = PACKED_MAGIC,
		.version = PACKED_VERSION,
		.count = rs->count,
		.probe_hash = index_hash_text(PACKED_PROBE),
		.arena_bytes = rs->arena.len,
		.words_bytes = rs->words.len,
		.dead_bytes = rs->dead_bytes,
		.json_end = -1,
		.kind_count = rs->kind_count,
		.id_room = rs->by_id.room,
		.id_used = rs->by_id.used,
		.word_room = rs->by_word.room,
		.word_used = rs->by_word.used,
		.kind_room = rs->by_kind.room,
		.kind_used = rs->by_kind.used,
	};

	if (rs->json) {
		SCOPED_LOCK(&rs->json->lock);
		head.json_end = rs->json->end;
	}
	sections_of(rs, sections);
	head.sum = sum_packed(head, sections);
	int r = put(arg, &head, sizeof(head));
	for (int i = 0; r == 0 && i < SECTION_COUNT; i++)
		r = sections[i].len ? put(arg, sections[i].bytes, sections[i].len) : 0;
	return r;
}

/* What unpack_number() may be let loose on. */
static bool skip_number(const unsigned char **p, const unsigned char *end)
{
	for (int i = 0; i < 10 && *p < end; i++) {
		if (!(*(*p)++ & 0x80))
			return true;
	}
	return false;
}

static bool skip_text(const unsigned char **p, const unsigned char *end)
{
	const unsigned char *zero = *p < end ? memchr(*p, 0, (size_t)(end - *p)) : NULL;

	*p = zero ? zero + 1 : end;
	return zero != NULL;
}

/* Can record i be unpacked, without a step beyond the arena? */
static bool record_is_sound(const struct records *rs, uint32_t i)
{
	const unsigned char *begin = (const unsigned char *)rs->arena.data, *end = begin + rs->arena.len;
	const unsigned char *p = begin + rs->at[i];
	unsigned numbers = 0, texts = 2;

	if (rs->at[i] >= rs->arena.len || !skip_number(&p, end))
		return false;
	p = begin + rs->at[i];
	uint64_t flags = unpack_number(&p);
	const unsigned char *kind_at = p;
	if (flags >> EXTRA_SHIFT > EXTRA_MAX || !skip_number(&p, end) || unpack_number(&kind_at) >= rs->kind_count)
		return false;
	for (unsigned flag = HAS_SIZE; flag <= HAS_JSON; flag <<= 1)
		numbers += (flags & flag) != 0;
	while (numbers-- > 0) {
		if (!skip_number(&p, end))
			return false;
	}
	if (flags & HAS_SHA256) {
		if (end - p < 32)
			return false;
		p += 32;
	}
	if (p >= end || !*p) /* an id has letters */
		return false;
	texts += (flags & HAS_SOURCE_URL) != 0;
	texts += (flags & HAS_ERROR) != 0;
	texts += 2 * (unsigned)(flags >> EXTRA_SHIFT);
	while (texts-- > 0) {
		if (!skip_text(&p, end))
			return false;
	}
	return true;
}

static bool kind_is_sound(const struct records *rs, const struct kind *k)
{
	for (int i = 0; i < WORD_COUNT; i++) {
		if (k->words[i] && k->words[i] >= rs->words.len)
			return false;
	}
	return k->state <= STATE_FAILED;
}

static bool records_are_sound(const struct records *rs)
{
	if (rs->words.len && rs->words.data[rs->words.len - 1] != '\0')
		return false;
	for (uint32_t i = 0; i < rs->kind_count; i++) {
		if (!kind_is_sound(rs, &rs->kinds[i]))
			return false;
	}
	for (uint32_t i = 0; i < rs->count; i++) {
		if (!record_is_sound(rs, i))
			return false;
	}
	return slots_are_sound(&rs->by_id, rs->count) && slots_are_sound(&rs->by_word, (uint32_t)rs->words.len) &&
	       slots_are_sound(&rs->by_kind, rs->kind_count);
}

static bool head_is_ours(const struct packed_head *h, size_t bytes)
{
	/* Each is bounded before they are added up. */
	if (h->magic != PACKED_MAGIC || h->version != PACKED_VERSION ||
	    h->probe_hash != index_hash_text(PACKED_PROBE) || h->count > INT_MAX || h->arena_bytes >= UINT32_MAX - 1 ||
	    h->words_bytes >= UINT32_MAX - 1 || h->json_end < -1 || h->dead_bytes > h->arena_bytes)
		return false;
	return sizeof(*h) + h->arena_bytes + h->words_bytes + (uint64_t)h->count * sizeof(uint32_t) +
		       (uint64_t)h->kind_count * sizeof(struct kind) +
		       ((uint64_t)h->id_room + h->word_room + h->kind_room) * SLOT_BYTES ==
	       bytes;
}

static int room_for_buf(struct buf *b, uint64_t len)
{
	if (!len)
		return 0;
	b->data = malloc((size_t)len + 1);
	if (!b->data)
		return -ENOMEM;
	b->room = (size_t)len + 1;
	b->len = (size_t)len;
	b->data[len] = '\0';
	return 0;
}

static int room_for_slots(struct slots *s, uint32_t room, uint32_t used)
{
	int r = room ? slots_new(room, s) : 0;

	s->used = used;
	return r;
}

static int room_for_records(struct records *rs, const struct packed_head *h)
{
	int r = room_for_buf(&rs->arena, h->arena_bytes);

	if (r == 0)
		r = room_for_buf(&rs->words, h->words_bytes);
	if (r == 0)
		r = room_for_slots(&rs->by_id, h->id_room, h->id_used);
	if (r == 0)
		r = room_for_slots(&rs->by_word, h->word_room, h->word_used);
	if (r == 0)
		r = room_for_slots(&rs->by_kind, h->kind_room, h->kind_used);
	rs->at = h->count ? malloc(h->count * sizeof(*rs->at)) : NULL;
	rs->kinds = h->kind_count ? malloc(h->kind_count * sizeof(*rs->kinds)) : NULL;
	if (r < 0 || (h->count && !rs->at) || (h->kind_count && !rs->kinds))
		return -ENOMEM;
	rs->count = rs->room = h->count;
	rs->kind_count = rs->kind_room = h->kind_count;
	rs->dead_bytes = (size_t)h->dead_bytes;
	return 0;
}

/* The records of JSON that go with it. Those of a file that is lost are absent, and what is added goes behind them. */
static int open_json(const char *dir, const char *name, off_t end, struct json_file **ret)
{
	char path[PATH_MAX];
	struct stat st;
	int fd = name[0] && path_of(dir, name, path) == 0 ? open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW) : -1;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		fd_close(&fd);
		return json_file_new(dir, end, ret);
	}
	struct json_file *f = json_file_of(fd, st.st_size > end ? st.st_size : end);
	if (!f)
		return -ENOMEM;
	(void)snprintf(f->name, sizeof(f->name), "%s", name);
	*ret = f;
	return 0;
}

int listing_unpack(const struct listing_source *from, struct listing **ret)
{
	CLEANUP(records_release) struct records *rs = NULL;
	struct packed_head head;
	struct section sections[SECTION_COUNT];

	if (from->bytes < sizeof(head))
		return -EBADMSG;
	int r = from->get(from->arg, &head, sizeof(head));
	if (r < 0)
		return r;
	if (!head_is_ours(&head, from->bytes))
		return -EBADMSG;
	rs = records_new();
	if (!rs || room_for_records(rs, &head) < 0)
		return -ENOMEM;
	sections_of(rs, sections);
	for (int i = 0; r == 0 && i < SECTION_COUNT; i++)
		r = sections[i].len ? from->get(from->arg, sections[i].bytes, sections[i].len) : 0;
	if (r < 0)
		return r;
	if (sum_packed(head, sections) != head.sum || !records_are_sound(rs))
		return -EBADMSG;
	if (head.json_end >= 0)
		r = open_json(from->json_dir, from->json_name, (off_t)head.json_end, &rs->json);
	if (r < 0)
		return r;
	struct listing *l = listing_new(rs, serial_next(), from->asked_ms, from->as_of_wall_ms);
	if (!l)
		return -ENOMEM;
	(void)records_take(&rs); /* the listing's now */
	*ret = l;
	return 0;
}
