/* A secret: a token or password that can't be printed by accident, and is wiped when released.
 *
 * Safe to read from several threads; replaced only through secret_move() under its owner's lock. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct secret; /* closed on purpose: no format specifier reaches the text */

/* Copies text (white space at both ends is dropped). NULL when it is empty, holds control characters, or memory ends. */
struct secret *secret_new(const char *text);

/* Reads a file of at most 64 KiB. -EACCES when group or others can read it and it is not under trusted_dir (the
 * systemd credentials folder; NULL for none), -EINVAL when it holds no secret, else open(2)'s errno. */
int secret_read_file(const char *path, const char *trusted_dir, struct secret **ret);

/* Runs a shell command from a configuration file and takes its first line. At most 30 s. -EIO when it fails. */
int secret_read_command(const char *command, struct secret **ret);

struct secret *secret_copy(const struct secret *s);
bool secret_is_equal(const struct secret *a, const struct secret *b);

/* For the one place that sends it. Borrowed until the secret is freed. */
const char *secret_reveal(const struct secret *s);

/* HMAC-SHA-256 keyed by the secret over `about`, as 64 hex digits and a NUL: a name for "the account of this token"
 * that tells nothing of the token. */
void secret_fingerprint(const struct secret *s, const char *about, char ret_hex[65]);

void secret_free(struct secret *s);
void secret_release(struct secret **s); /* for CLEANUP */
