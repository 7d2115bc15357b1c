/* Signed PUT and GET, with S3's refusals. A body goes to a file as it comes and is hashed on the way, so that a
 * gigabyte costs no memory; it becomes an object when all of it is there, and not before. */
#include "tests/sandbox/storage.h"
#include "tests/sandbox/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PUT_BYTES_MAX (5LL << 30)

struct upload {
	int fd;
	char *path;
	EVP_MD_CTX *md;
	int64_t size_bytes;
};

static void refuse(struct request *q, int status, const char *code, const char *message)
{
	CLEANUP(text_free) char *id = uuid_new();
	CLEANUP(text_free)
	char *body = text_format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s"
				 "</Message><RequestId>%.16s</RequestId></Error>",
				 code, message, id);
	answer_text(&q->answer, status, "application/xml", body);
}

/* --- Signatures --- */

static char *amz_date(int64_t ms)
{
	time_t t = (time_t)(ms / 1000);
	struct tm tm;
	char text[24];
	strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", gmtime_r(&t, &tm));
	return text_copy(text);
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Pairs decoded, encoded again and sorted, without the signature: the same whatever way a client writes them. */
static char *canonical_query(const char *raw)
{
	CLEANUP(text_free) char *all = text_copy(raw);
	char *pairs[32], *rest = all;
	size_t count = 0;
	for (char *pair = strsep(&rest, "&"); pair != NULL && count < COUNT_OF(pairs); pair = strsep(&rest, "&")) {
		char *value = pair;
		CLEANUP(text_free) char *key = url_decode(strsep(&value, "="), false);
		CLEANUP(text_free) char *plain = url_decode(value == NULL ? "" : value, false);
		if (strcmp(key, "X-Amz-Signature") == 0 || *key == 0)
			continue;
		CLEANUP(text_free) char *key_again = url_encode(key, false);
		CLEANUP(text_free) char *value_again = url_encode(plain, false);
		pairs[count++] = text_format("%s=%s", key_again, value_again);
	}
	qsort(pairs, count, sizeof *pairs, compare_texts);
	char *text = text_copy("");
	for (size_t i = 0; i < count; i++) {
		char *longer = text_format("%s%s%s", text, i > 0 ? "&" : "", pairs[i]);
		free(text);
		free(pairs[i]);
		text = longer;
	}
	return text;
}

static char *signature(struct sandbox *s, const char *method, const char *path, const char *query, const char *headers)
{
	CLEANUP(text_free) char *path_again = url_encode(path, true);
	CLEANUP(text_free) char *canonical = canonical_query(query);
	CLEANUP(text_free) char *text = text_format("%s\n%s\n%s\n%s", method, path_again, canonical, headers);
	unsigned char mac[32];
	unsigned mac_bytes = 0;
	char hex[65];
	HMAC(EVP_sha256(), sandbox_secret(s), 32, (const unsigned char *)text, strlen(text), mac, &mac_bytes);
	bytes_to_hex(mac, mac_bytes, hex);
	return text_copy(hex);
}

const char *storage_host(struct storage *st)
{
	return strstr(sandbox_url(st->sandbox, "storage"), "://") + 3;
}

/* headers: "name:value\n" for each name in names ("a;b"), in that order. */
static char *sign(struct storage *st, const char *method, const char *key, const char *names, const char *headers,
		  int64_t lifetime_ms, const char *more)
{
	CLEANUP(text_free) char *date = amz_date(sandbox_now_ms(st->sandbox));
	CLEANUP(text_free) char *credential = text_format("SANDBOX/%.8s/eu-west-1/s3/aws4_request", date);
	CLEANUP(text_free) char *credential_text = url_encode(credential, false);
	CLEANUP(text_free) char *names_text = url_encode(names, false);
	CLEANUP(text_free)
	char *query =
		text_format("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=%s&X-Amz-Date=%s&X-Amz-Expires=%lld"
			    "&X-Amz-SignedHeaders=%s%s",
			    credential_text, date, (long long)(lifetime_ms / 1000), names_text, more);
	CLEANUP(text_free) char *path = text_format("/%s", key);
	CLEANUP(text_free) char *path_text = url_encode(path, true);
	CLEANUP(text_free) char *mac = signature(st->sandbox, method, path, query, headers);
	return text_format("%s%s?%s&X-Amz-Signature=%s", sandbox_url(st->sandbox, "storage"), path_text, query, mac);
}

char *storage_sign_put(struct storage *st, const char *key, const char *content_type, bool signs_type, const char *acl,
		       int64_t lifetime_ms)
{
	struct object *o = storage_find(st, key);
	if (o == NULL) {
		o = calloc(1, sizeof *o);
		if (o == NULL)
			abort();
		o->key = text_copy(key);
		HASH_ADD_KEYPTR(hh, st->objects, o->key, strlen(o->key), o);
	}
	free(o->content_type);
	o->content_type = text_copy(content_type);
	o->signed_ms = sandbox_now_ms(st->sandbox);
	sandbox_changed(st->sandbox);
	CLEANUP(text_free)
	char *names = text_format("%shost%s", signs_type ? "content-type;" : "", acl != NULL ? ";x-amz-acl" : "");
	CLEANUP(text_free) char *type_line = text_format("content-type:%s\n", content_type);
	CLEANUP(text_free)
	char *headers = text_format("%shost:%s\n%s%s%s", signs_type ? type_line : "", storage_host(st),
				    acl != NULL ? "x-amz-acl:" : "", acl != NULL ? acl : "", acl != NULL ? "\n" : "");
	return sign(st, "PUT", key, names, headers, lifetime_ms, "");
}

char *storage_sign_get(struct storage *st, const char *key, int64_t lifetime_ms)
{
	CLEANUP(text_free) char *headers = text_format("host:%s\n", storage_host(st));
	return sign(st, "GET", key, "host", headers, lifetime_ms, "");
}

struct unsigned_check {
	const char *names; /* ";a;b;" */
	bool found;
};

static void check_unsigned(void *cls, const char *name, const char *value)
{
	struct unsigned_check *c = cls;
	(void)value;
	if (strncasecmp(name, "x-amz-", 6) != 0)
		return;
	CLEANUP(text_free) char *word = text_format(";%s;", name);
	if (strcasestr(c->names, word) == NULL)
		c->found = true;
}

static int64_t parse_amz_date(const char *text)
{
	struct tm tm = { 0 };
	char *end = strptime(text, "%Y%m%dT%H%M%SZ", &tm);
	return end == NULL || *end != 0 ? -1 : (int64_t)timegm(&tm) * 1000;
}

/* True: signed for this very request, and still good. Otherwise the answer is set. */
static bool is_authorized(struct request *q, const char *method)
{
	struct storage *st = storage_from(q->state);
	CLEANUP(text_free) char *given = request_query(q, "X-Amz-Signature");
	CLEANUP(text_free) char *names = request_query(q, "X-Amz-SignedHeaders");
	CLEANUP(text_free) char *date = request_query(q, "X-Amz-Date");
	CLEANUP(text_free) char *expires = request_query(q, "X-Amz-Expires");
	if (request_header(q, "Authorization") != NULL) {
		refuse(q, 400, "InvalidArgument",
		       "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query "
		       "string "
		       "parameter or the Authorization header should be specified");
		return false;
	}
	if (given == NULL || names == NULL || date == NULL || expires == NULL || parse_amz_date(date) < 0) {
		refuse(q, 403, "AccessDenied", "Access Denied");
		return false;
	}
	char *headers = text_copy("");
	CLEANUP(text_free) char *list = text_copy(names);
	char *rest = list;
	for (char *name = strsep(&rest, ";"); name != NULL; name = strsep(&rest, ";")) {
		const char *value = request_header(q, name);
		bool once = request_header_count(q, name) == 1;
		char *longer = text_format("%s%s:%s\n", headers, name, value != NULL && once ? value : "(missing)");
		free(headers);
		headers = longer;
	}
	CLEANUP(text_free) char *expected = signature(st->sandbox, method, q->path, q->raw_query, headers);
	free(headers);
	if (strcmp(expected, given) != 0) {
		refuse(q, 403, "SignatureDoesNotMatch",
		       "The request signature we calculated does not match the signature you provided. Check your key "
		       "and signing "
		       "method.");
		return false;
	}
	if (sandbox_now_ms(st->sandbox) >= parse_amz_date(date) + strtoll(expires, NULL, 10) * 1000) {
		refuse(q, 403, "AccessDenied", "Request has expired");
		return false;
	}
	CLEANUP(text_free) char *known = text_format(";%s;", names);
	struct unsigned_check extra = { .names = known };
	request_each_header(q, check_unsigned, &extra);
	if (extra.found) {
		refuse(q, 403, "AccessDenied", "There were headers present in the request which were not signed");
		return false;
	}
	return true;
}

/* --- Objects --- */

void storage_init(struct storage *st, struct sandbox *s)
{
	st->sandbox = s;
	st->objects_dir = text_format("%s/objects", sandbox_dir(s));
	st->blobs_dir = text_format("%s/blobs", sandbox_dir(s));
	/* They may be there from the last run; a real failure shows at the first upload. */
	(void)mkdir(st->objects_dir, 0700);
	(void)mkdir(st->blobs_dir, 0700);
}

static void object_free(struct object *o)
{
	free(o->key);
	free(o->content_type);
	free(o->path);
	free(o);
}

static void forget_objects(struct storage *st, bool deletes)
{
	struct object *o, *next;
	HASH_ITER (hh, st->objects, o, next) {
		HASH_DEL(st->objects, o);
		if (deletes && o->path != NULL)
			unlink(o->path);
		object_free(o);
	}
}

void storage_reset(struct storage *st)
{
	forget_objects(st, true);
}

void storage_release(struct storage *st)
{
	forget_objects(st, false);
	free(st->objects_dir);
	free(st->blobs_dir);
}

cJSON *storage_save(const struct storage *st)
{
	cJSON *list = cJSON_CreateArray();
	for (const struct object *o = st->objects; o != NULL; o = o->hh.next) {
		cJSON *one = cJSON_CreateObject();
		cJSON_AddStringToObject(one, "key", o->key);
		if (o->content_type != NULL)
			cJSON_AddStringToObject(one, "content_type", o->content_type);
		if (o->path != NULL)
			cJSON_AddStringToObject(one, "file", strrchr(o->path, '/') + 1);
		cJSON_AddStringToObject(one, "sha256", o->sha256);
		cJSON_AddNumberToObject(one, "size", (double)o->size_bytes);
		cJSON_AddNumberToObject(one, "signed_ms", (double)o->signed_ms);
		cJSON_AddBoolToObject(one, "put", o->is_put);
		cJSON_AddBoolToObject(one, "used", o->is_used);
		cJSON_AddItemToArray(list, one);
	}
	return list;
}

void storage_load(struct storage *st, const cJSON *saved)
{
	const cJSON *one;
	cJSON_ArrayForEach (one, saved) {
		struct object *o = calloc(1, sizeof *o);
		if (o == NULL)
			abort();
		o->key = text_copy(json_text(one, "key", ""));
		o->content_type = text_copy(json_text(one, "content_type", NULL));
		const char *file = json_text(one, "file", NULL);
		o->path = file == NULL ? NULL : text_format("%s/%s", st->objects_dir, file);
		snprintf(o->sha256, sizeof o->sha256, "%s", json_text(one, "sha256", ""));
		o->size_bytes = json_number(one, "size", 0);
		o->signed_ms = json_number(one, "signed_ms", 0);
		o->is_put = json_bool(one, "put", false);
		o->is_used = json_bool(one, "used", false);
		HASH_ADD_KEYPTR(hh, st->objects, o->key, strlen(o->key), o);
	}
}

struct object *storage_find(struct storage *st, const char *key)
{
	struct object *o = NULL;
	HASH_FIND_STR(st->objects, key, o);
	return o;
}

int storage_use(struct storage *st, struct object *o, struct content *ret)
{
	char *blob = text_format("%s/%s", st->blobs_dir, o->sha256);
	if (rename(o->path, blob) < 0) {
		int error = errno;
		free(blob);
		return -error;
	}
	free(o->path);
	o->path = NULL;
	o->is_used = true;
	sandbox_changed(st->sandbox);
	*ret = (struct content){ .path = blob, .size_bytes = o->size_bytes };
	return 0;
}

int storage_keep(struct storage *st, const void *bytes, size_t count, struct content *ret,
		 char ret_sha256[SHA256_HEX_BYTES])
{
	unsigned char digest[32];
	EVP_Digest(bytes, count, digest, NULL, EVP_sha256(), NULL);
	bytes_to_hex(digest, sizeof digest, ret_sha256);
	char *blob = text_format("%s/%s", st->blobs_dir, ret_sha256);
	FILE *f = fopen(blob, "we");
	bool ok = f != NULL && fwrite(bytes, 1, count, f) == count;
	ok = f != NULL && fclose(f) == 0 && ok;
	if (!ok) {
		free(blob);
		return -EIO;
	}
	*ret = (struct content){ .path = blob, .size_bytes = (int64_t)count };
	return 0;
}

/* --- The origin --- */

static const char *route(struct request *q)
{
	return strcmp(q->method, "PUT") == 0 ? "put" : strcmp(q->method, "GET") == 0 ? "download" : "storage_other";
}

static void begin(struct request *q)
{
	if (strcmp(q->method, "PUT") != 0)
		return;
	struct storage *st = storage_from(q->state);
	if (request_header(q, "Transfer-Encoding") != NULL) {
		refuse(q, 501, "NotImplemented", "A header you provided implies functionality that is not implemented");
		return;
	}
	if (q->length_bytes < 0) {
		refuse(q, 411, "MissingContentLength", "You must provide the Content-Length HTTP header.");
		return;
	}
	if (!is_authorized(q, "PUT"))
		return;
	if (q->length_bytes > PUT_BYTES_MAX) {
		refuse(q, 400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size");
		return;
	}
	struct upload *u = calloc(1, sizeof *u);
	CLEANUP(text_free) char *name = uuid_new();
	if (u == NULL)
		abort();
	u->path = text_format("%s/%s", st->objects_dir, name);
	u->fd = open(u->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	u->md = EVP_MD_CTX_new();
	EVP_DigestInit_ex(u->md, EVP_sha256(), NULL);
	q->own = u;
	if (u->fd < 0)
		refuse(q, 500, "InternalError", strerror(errno));
}

static int take_body(struct request *q, const char *bytes, size_t count)
{
	struct upload *u = q->own;
	for (size_t at = 0; u != NULL && at < count;) {
		ssize_t n = write(u->fd, bytes + at, count - at);
		if (n < 0 && errno != EINTR)
			return -errno;
		at += n < 0 ? 0 : (size_t)n;
	}
	if (u != NULL) {
		EVP_DigestUpdate(u->md, bytes, count);
		u->size_bytes += (int64_t)count;
	}
	return 0;
}

static void add_etag(struct request *q, const char *sha256)
{
	CLEANUP(text_free) char *etag = text_format("\"%.32s\"", sha256);
	answer_header(&q->answer, "ETag", etag);
}

static void handle_put(struct request *q)
{
	struct storage *st = storage_from(q->state);
	struct upload *u = q->own;
	struct object *o = storage_find(st, q->path + 1);
	if (u->size_bytes != q->length_bytes) {
		refuse(q, 400, "IncompleteBody",
		       "You did not provide the number of bytes specified by the Content-Length HTTP header");
		return;
	}
	if (o == NULL) { /* signed before a reset */
		refuse(q, 403, "AccessDenied", "Access Denied");
		return;
	}
	unsigned char digest[32];
	EVP_DigestFinal_ex(u->md, digest, NULL);
	bytes_to_hex(digest, sizeof digest, o->sha256);
	if (o->path != NULL)
		unlink(o->path);
	free(o->path);
	o->path = u->path;
	u->path = NULL;
	o->size_bytes = u->size_bytes;
	o->is_put = true;
	sandbox_changed(st->sandbox);
	add_etag(q, o->sha256);
	q->answer.status = 200;
}

/* True: *from and *to (inclusive) are set. A range that makes no sense is no range. */
static bool parse_range(const char *text, int64_t size, int64_t *from, int64_t *to)
{
	char *end = NULL;
	if (text == NULL || strncmp(text, "bytes=", 6) != 0 || strchr(text, ',') != NULL)
		return false;
	text += 6;
	if (*text == '-') {
		int64_t n = strtoll(text + 1, &end, 10);
		if (end == text + 1 || *end != 0)
			return false;
		*from = n == 0 ? size : n > size ? 0 : size - n;
		*to = size - 1;
		return true;
	}
	*from = strtoll(text, &end, 10);
	if (end == text || *end != '-')
		return false;
	text = end + 1;
	*to = size - 1;
	if (*text != 0) {
		*to = strtoll(text, &end, 10);
		if (*end != 0 || *to < *from)
			return false;
		if (*to >= size)
			*to = size - 1;
	}
	return true;
}

static void handle_get(struct request *q)
{
	struct storage *st = storage_from(q->state);
	if (!is_authorized(q, "GET"))
		return;
	const char *mime = NULL, *sha256 = "";
	const struct content *c = st->linked(q->state, q->path + 1, &mime, &sha256);
	if (c == NULL) {
		refuse(q, 404, "NoSuchKey", "The specified key does not exist.");
		return;
	}
	CLEANUP(text_free) char *redirected = request_query(q, "redirected");
	if (switch_on(st->sandbox, "storage.redirect") && redirected == NULL) {
		CLEANUP(text_free) char *headers = text_format("host:%s\n", storage_host(st));
		CLEANUP(text_free) char *url = sign(st, "GET", q->path + 1, "host", headers, 60000, "&redirected=1");
		answer_header(&q->answer, "Location", url);
		q->answer.status = 307;
		return;
	}
	int64_t from = 0, to = c->size_bytes - 1;
	CLEANUP(text_free) char *etag = text_format("\"%.32s\"", sha256);
	const char *only_if = request_header(q, "If-Range");
	bool is_part = switch_on(st->sandbox, "storage.range") && (only_if == NULL || strcmp(only_if, etag) == 0) &&
		       parse_range(request_header(q, "Range"), c->size_bytes, &from, &to);
	if (is_part && from >= c->size_bytes) {
		CLEANUP(text_free) char *size = text_format("bytes */%lld", (long long)c->size_bytes);
		answer_header(&q->answer, "Content-Range", size);
		refuse(q, 416, "InvalidRange", "The requested range is not satisfiable");
		return;
	}
	if (content_open(c, &q->answer.content) < 0) {
		refuse(q, 404, "NoSuchKey", "The specified key does not exist.");
		return;
	}
	q->answer.status = is_part ? 206 : 200;
	q->answer.from_byte = from;
	q->answer.length_bytes = to - from + 1;
	add_etag(q, sha256);
	answer_header(&q->answer, "Accept-Ranges", "bytes");
	answer_header(&q->answer, "Content-Type", mime == NULL ? "application/octet-stream" : mime);
	if (is_part) {
		CLEANUP(text_free)
		char *range =
			text_format("bytes %lld-%lld/%lld", (long long)from, (long long)to, (long long)c->size_bytes);
		answer_header(&q->answer, "Content-Range", range);
	}
}

static void handle(struct request *q)
{
	if (strcmp(q->method, "PUT") == 0)
		handle_put(q);
	else if (strcmp(q->method, "GET") == 0)
		handle_get(q);
	else if (strcmp(q->method, "HEAD") == 0) /* a link is signed for GET alone */
		refuse(q, 403, "SignatureDoesNotMatch", "The signature covers another method.");
	else
		refuse(q, 405, "MethodNotAllowed", "The specified method is not allowed against this resource.");
}

static void release(struct request *q)
{
	struct upload *u = q->own;
	if (u == NULL)
		return;
	if (u->fd >= 0)
		close(u->fd);
	if (u->path != NULL)
		unlink(u->path); /* never became an object */
	free(u->path);
	EVP_MD_CTX_free(u->md);
	free(u);
	q->own = NULL;
}

const struct origin_ops storage_origin = {
	.name = "storage",
	.port_offset = offsetof(struct sandbox_options, storage_port),
	.route = route,
	.begin = begin,
	.body = take_body,
	.handle = handle,
	.release = release,
};
