/* Checked, typed reads from cJSON. What a kind of thing is made of is known by its own reader, not here. */
#include "client/json.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "client/time.h"

/* Doubles hold whole numbers exactly up to here; beyond it an id would silently become another one. */
#define WHOLE_MAX 9007199254740992.0

/* The code unit of a \uXXXX at `at`, or -1. */
static int read_code_unit(const char *at, const char *end)
{
	int unit = 0;

	if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++) {
		if (!isxdigit((unsigned char)at[i]))
			return -1;
		unit = unit * 16 + (isdigit((unsigned char)at[i]) ? at[i] - '0' : (at[i] | 0x20) - 'a' + 10);
	}
	return unit;
}

/* JSON may hold half a surrogate pair, or \u0000; no text of ours can, and cJSON refuses the one and cuts at the other. Both become
 * U+FFFD, so that one odd file name does not hide a whole listing. NULL: nothing to mend, or no memory. The caller frees it. */
static char *mend(const char *bytes, size_t len)
{
	const char *end = bytes + len;
	char *mended = NULL;

	for (const char *at = memchr(bytes, '\\', len); at && at + 1 < end; at = memchr(at, '\\', (size_t)(end - at))) {
		int unit = read_code_unit(at, end);
		int next = unit >= 0xd800 && unit <= 0xdbff ? read_code_unit(at + 6, end) : -1;
		if (unit >= 0xd800 && unit <= 0xdbff && next >= 0xdc00 && next <= 0xdfff) {
			at += 12;
		} else if (unit == 0 || (unit >= 0xd800 && unit <= 0xdfff)) {
			if (!mended) {
				mended = malloc(len + 1);
				if (!mended)
					return NULL;
				memcpy(mended, bytes, len);
			}
			memcpy(mended + (at - bytes) + 2, "fffd", 4);
			at += 6;
		} else {
			at += 2;
		}
		if (at >= end)
			break;
	}
	return mended;
}

int json_parse(const char *bytes, size_t len, cJSON **ret)
{
	const char *end = NULL;
	CLEANUP(text_release) char *mended = len > 0 ? mend(bytes, len) : NULL;

	if (mended)
		bytes = mended;
	cJSON *parsed = len > 0 ? cJSON_ParseWithLengthOpts(bytes, len, &end, 0) : NULL;

	if (!parsed)
		return -EPROTO;
	for (; end < bytes + len; end++) {
		if (*end == '\0' || !strchr(" \t\r\n", *end)) {
			cJSON_Delete(parsed);
			return -EPROTO;
		}
	}
	*ret = parsed;
	return 0;
}

struct json_in json_in_begin(const cJSON *object, const char *what)
{
	struct json_in in = { .object = object, .what = what };

	if (!cJSON_IsObject(object)) {
		in.failed = true;
		snprintf(in.why, sizeof(in.why), "it is not an object");
	}
	return in;
}

int json_in_end(struct json_in *in)
{
	if (!in->failed)
		return 0;
	log_warning("%s: %s", in->what, in->why);
	return -EPROTO;
}

static void fault(struct json_in *in, const char *key, const char *why)
{
	if (in->failed)
		return;
	in->failed = true;
	snprintf(in->why, sizeof(in->why), "'%s' %s", key, why);
}

/* NULL: absent, null, or the reading has failed already. */
static const cJSON *look(const struct json_in *in, const char *key)
{
	const cJSON *found = in->failed ? NULL : cJSON_GetObjectItemCaseSensitive(in->object, key);

	return cJSON_IsNull(found) ? NULL : found;
}

const char *json_text_or(struct json_in *in, const char *key, const char *otherwise)
{
	const cJSON *found = look(in, key);

	if (!found)
		return otherwise;
	if (!cJSON_IsString(found) || !found->valuestring) {
		fault(in, key, "is not text");
		return otherwise;
	}
	return found->valuestring;
}

const char *json_text(struct json_in *in, const char *key)
{
	const char *text = json_text_or(in, key, NULL);

	if (!text)
		fault(in, key, "is missing");
	return text;
}

static bool is_whole(const cJSON *number)
{
	double d = number->valuedouble;

	return isfinite(d) && d == floor(d) && fabs(d) < WHOLE_MAX;
}

const char *json_id_or(struct json_in *in, const char *key, struct json_id *room, const char *otherwise)
{
	const cJSON *found = look(in, key);

	if (!found)
		return otherwise;
	if (cJSON_IsString(found) && found->valuestring)
		return found->valuestring[0] ? found->valuestring : otherwise;
	if (!cJSON_IsNumber(found) || !is_whole(found)) {
		fault(in, key, "is neither text nor a whole number we can keep exactly");
		return otherwise;
	}
	snprintf(room->text, sizeof(room->text), "%.0f", found->valuedouble);
	return room->text;
}

const char *json_id(struct json_in *in, const char *key, struct json_id *room)
{
	const char *id = json_id_or(in, key, room, NULL);

	if (!id)
		fault(in, key, "is missing");
	return id;
}

int64_t json_whole_or(struct json_in *in, const char *key, int64_t otherwise)
{
	const cJSON *found = look(in, key);

	if (!found)
		return otherwise;
	if (!cJSON_IsNumber(found) || !is_whole(found)) {
		fault(in, key, "is not a whole number");
		return otherwise;
	}
	return (int64_t)found->valuedouble;
}

int64_t json_time_or(struct json_in *in, const char *key, int64_t otherwise)
{
	const cJSON *found = look(in, key);
	int64_t ms = otherwise;

	if (cJSON_IsString(found) && found->valuestring && time_parse_iso(found->valuestring, &ms) < 0)
		return otherwise;
	return ms;
}

const cJSON *json_object_or_null(struct json_in *in, const char *key)
{
	const cJSON *found = look(in, key);

	if (found && !cJSON_IsObject(found)) {
		/* PHP writes an empty object as []. */
		if (!cJSON_IsArray(found) || found->child)
			fault(in, key, "is not an object");
		return NULL;
	}
	return found;
}

const cJSON *json_array_or_null(struct json_in *in, const char *key)
{
	const cJSON *found = look(in, key);

	if (found && !cJSON_IsArray(found)) {
		fault(in, key, "is not a list");
		return NULL;
	}
	return found;
}

static char *copy(struct json_in *in, const char *key, const char *text)
{
	char *own = text ? strdup(text) : NULL;

	if (text && !own)
		fault(in, key, "found no memory");
	return own;
}

char *json_copy_text(struct json_in *in, const char *key)
{
	return copy(in, key, json_text(in, key));
}

char *json_copy_id(struct json_in *in, const char *key)
{
	struct json_id room;

	return copy(in, key, json_id(in, key, &room));
}

/* The bytes of the UTF-8 character at p, or 0 when it is none (overlong, surrogate, cut off). */
static int utf8_bytes(const unsigned char *p)
{
	if (p[0] < 0x80)
		return 1;
	int len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return 0;
	for (int i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	}
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
	    (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	return len;
}

void json_add_quoted(struct buf *b, const char *text)
{
	const unsigned char *p = (const unsigned char *)text;

	buf_add(b, "\"");
	while (*p) {
		int len = utf8_bytes(p);

		if (len == 0) {
			buf_add(b, "\xEF\xBF\xBD");
			p++;
		} else if (len == 1 && (*p < 0x20 || *p == 0x7f)) {
			buf_addf(b, "\\u%04x", *p);
			p++;
		} else {
			if (*p == '"' || *p == '\\')
				buf_add(b, "\\");
			buf_add_bytes(b, p, (size_t)len);
			p += len;
		}
	}
	buf_add(b, "\"");
}

void json_release(cJSON **p)
{
	cJSON_Delete(*p);
	*p = NULL;
}
