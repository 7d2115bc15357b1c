#ifndef SESSIONFS_TESTS_SANDBOX_STORAGE_H
#define SESSIONFS_TESTS_SANDBOX_STORAGE_H

/* Object storage behind signed links, as strict as S3: what is not signed is not let in. The sandbox's lock is held in
 * all of these. */

#include "tests/sandbox/core.h"

#include <uthash.h>

struct object {
	char *key;
	char *content_type; /* as signed; NULL: none was */
	char *path;         /* NULL until it was PUT, and again once used */
	char sha256[SHA256_HEX_BYTES];
	int64_t size_bytes, signed_ms;
	bool is_put, is_used;
	UT_hash_handle hh;
};

struct storage {
	struct sandbox *sandbox;
	struct object *objects;
	char *objects_dir, *blobs_dir;
	/* What a key under documents/ links to; NULL: nothing. */
	const struct content *(*linked)(void *state, const char *key, const char **ret_mime, const char **ret_sha256);
};

extern const struct origin_ops storage_origin;

void storage_init(struct storage *st, struct sandbox *s);
void storage_release(struct storage *st);
void storage_reset(struct storage *st);
cJSON *storage_save(const struct storage *st);
void storage_load(struct storage *st, const cJSON *saved);

/* A URL for one PUT. signs_type: the Content-Type has to come as given; acl: "private" or NULL. The caller frees it. */
char *storage_sign_put(struct storage *st, const char *key, const char *content_type, bool signs_type, const char *acl,
		       int64_t lifetime_ms);
char *storage_sign_get(struct storage *st, const char *key, int64_t lifetime_ms);
const char *storage_host(struct storage *st);

struct object *storage_find(struct storage *st, const char *key);

/* The bytes become a document's: a content kept by hash. The key is used up. 0 or -errno. */
int storage_use(struct storage *st, struct object *o, struct content *ret);

/* Keeps bytes that came another way. */
int storage_keep(struct storage *st, const void *bytes, size_t count, struct content *ret,
		 char ret_sha256[SHA256_HEX_BYTES]);

/* The storage of the service whose state this is. */
struct storage *storage_from(void *state);

#endif
