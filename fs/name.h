/* Pure: a server's title -> a safe file name, unique in its folder; which names are scratch; which suffixes are taken.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define NAME_BYTES_MAX 255

/* Writes a safe file name for a server's title: '/', NUL (impossible here), control and bidirectional-override
 * characters and invalid UTF-8 become '_'; what begins with '.' (hidden, "..", one of ours) gets a '_' in front; ""
 * becomes "unnamed"; over 255 bytes is cut between characters, keeping the extension. Deterministic. */
void name_make_safe(const char *title, char ret[NAME_BYTES_MAX + 1]);

/* Is it surely its own safe name? Letters, digits and the like in ASCII; false: name_make_safe() says what it becomes. */
bool name_is_safe(const char *title);

/* The same name told apart: "a.pdf" with "3f2c" -> "a (3f2c).pdf", within 255 bytes. `length` of the id's hex digits
 * and letters are taken from its end that differs most (the last ones); callers lengthen it until the name is free. */
void name_tell_apart(const char *safe_name, const char *id, int length, char ret[NAME_BYTES_MAX + 1]);
/* "Supplier bills" with "Accounts" -> "Supplier bills (Accounts)". The qualifier is made safe. */
void name_qualify(const char *safe_name, const char *qualifier, char ret[NAME_BYTES_MAX + 1]);

/* What a user may call a file: not "", ".", "..", no control or bidi-override character, valid UTF-8, at most 255
 * bytes. 0, -EINVAL (such a name never reaches the service), -ENAMETOOLONG. */
int name_check(const char *name);

/* The user's own additions, parsed once; immutable afterwards. */
struct name_rules;
/* ignore: patterns as fnmatch(3), separated by ':' or ' ', or NULL. service_formats: "pdf docx …". formats:
 * "+xlsx,-doc", "any", "pdf,png" or NULL. -EINVAL: `why` (may be NULL) gets a sentence. */
struct buf;
int name_rules_new(const char *ignore, const char *service_formats, const char *formats, struct buf *why,
		   struct name_rules **ret);
void name_rules_free(struct name_rules *r);

/* A name that never leaves the machine (design: "Scratch names"). */
bool name_is_scratch(const struct name_rules *r, const char *name);
/* The suffix is one the service takes, in any letter case, ".tif" as ".tiff". session_formats (may be NULL) replaces
 * the service's list for this session. */
bool name_is_accepted(const struct name_rules *r, const char *session_formats, const char *name);
/* "pdf docx doc …": what is accepted, for a message. Borrowed. */
const char *name_rules_formats(const struct name_rules *r);
