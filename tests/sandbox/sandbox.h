#ifndef SESSIONFS_TESTS_SANDBOX_SANDBOX_H
#define SESSIONFS_TESTS_SANDBOX_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The services on loopback, for tests and for people without an account.
 *
 * Two origins of Raydocs: "api" and "storage" (signed links; another port, so another origin); one of Rossum, "rossum",
 * whose base path is /api/v1; and "control", where tests and people arrange things; it is neither logged, limited nor delayed. Each listens on
 * 127.0.0.1. Written from the services' documentation and not from our client, so that the two can't share a mistake;
 * strict: what the documentation does not allow is refused.
 *
 * Calls are safe from any thread. They return 0 or -errno unless they say otherwise. */

#pragma GCC visibility push(default) /* the rest of the library keeps its names to itself */

struct sandbox;

struct sandbox_options {
	int api_port, storage_port, control_port, rossum_port; /* 0: any free one */
	const char *state_dir; /* made if missing; NULL: nothing outlives sandbox_stop() */
	bool tls;                                 /* for the services; control is always plain */
	const char *cert_file, *key_file;         /* PEM, both or neither; NULL with tls: see cert_dir */
	const char *cert_dir; /* a self-made cert.pem and key.pem are put here; NULL: in a temporary folder */
	long latency_ms;      /* before each answer of a service */
	long rate;            /* API requests per minute and client address; 0: no limit */
	long rossum_rate;     /* Rossum's requests per second; 0: no limit */
};

/* On success the services listen, and the caller owns *ret. */
int sandbox_start(const struct sandbox_options *options, struct sandbox **ret);

/* Ends listeners and requests, stalled ones too, and saves the state. Accepts NULL. */
void sandbox_stop(struct sandbox *s);

/* "http://127.0.0.1:PORT" of "api", "storage", "rossum", "control"; good until sandbox_stop(). NULL: no such origin. */
const char *sandbox_url(const struct sandbox *s, const char *origin);

/* The certificate that answers for the services, good until sandbox_stop(). NULL without tls. */
const char *sandbox_cert_file(const struct sandbox *s);

/* What the control origin does, in-process. json may be NULL. *ret_json (may be NULL) is text the caller frees, an
 * object with "message" when refused. Returns the HTTP status: 200, or 400/404 when refused. */
int sandbox_control(struct sandbox *s, const char *method, const char *path, const char *json, char **ret_json);

/* The words of `sessionfs-sandbox --help`: every control path, switch and route name. The caller frees it. */
char *sandbox_describe(void);

/* --- Shorthands over sandbox_control(); ids are returned as text the caller frees. --- */

/* abilities: "sessions-read,sessions-write"; NULL: all. */
int sandbox_add_token(struct sandbox *s, const char *token, const char *abilities);

/* Makes workspace 7 "Accounts payable" and template "Supplier bills" first, if there are none. */
int sandbox_add_session(struct sandbox *s, const char *name, char **ret_id);
int sandbox_add_document(struct sandbox *s, const char *session_id, const char *filename, const void *bytes,
			 size_t byte_count, char **ret_id);

/* Generated documents: "document-000001.pdf" and on, contents by formula. */
int sandbox_add_documents(struct sandbox *s, const char *session_id, long count);

int sandbox_set(struct sandbox *s, const char *name, const char *value);
int sandbox_fault(struct sandbox *s, const char *rule_json);
int sandbox_advance(struct sandbox *s, int64_t ms);

/* Requests seen since the start or the last /requests/clear; route NULL: all. */
long sandbox_count(struct sandbox *s, const char *route);

/* Workspace, template, a few sessions and documents of differing status, and one token; made once, again only
 * after a reset. *ret_text (the caller frees it) tells what there is, for people; *ret_token is the token. */
int sandbox_seed_demo(struct sandbox *s, char **ret_token, char **ret_text);

/* The same for Rossum: two queues of one name in two workspaces; user and password are "demo". */
int sandbox_seed_rossum_demo(struct sandbox *s, char **ret_token, char **ret_text);

#pragma GCC visibility pop

/* The control paths, all JSON. Unknown fields are refused, so that a test can't misspell a wish.
 *
 *   GET  /state[?session=ID][&documents=no]    everything there is
 *   POST /set {"switch": value, ...}           see --help for the switches; GET /switches shows them
 *   POST /fault {rule}                         see below; GET /faults; POST /faults/clear (frees who is stalled)
 *   GET  /requests[?since=N][&route=R][&limit=N]   POST /requests/clear
 *   GET  /requests/count[?status=N]            {"route": count, ..., "total": n}
 *   GET  /clock   POST /clock {"advance_ms"|"offset_ms": n, "freeze": bool}   expiry, parsing and limits go by it
 *   POST /down {"origins": ["api", "storage"], "how": "refuse"|"blackhole"}   POST /up {"origins"}   default: all
 *   POST /limit/clear                          forgets who sent how much
 *   POST /save                                 writes the state now
 *   POST /reset                                everything but the ports forgotten
 *   POST /workspace {"id", "name", "icon", "members": ["demo"]}
 *   POST /template  {"id", "name", "workspace"}
 *   POST /session   {"id", "name", "template", "status", "created_ms", "fields": {}}
 *   POST /token     {"token", "user", "abilities": [] or "*", "workspace", "expires_in_ms"}
 *   POST /revoke    {"token"}
 *   POST /document  {"session", "workspace", "id", "filename" or "filename_json" (raw JSON: "\"a\\u0000b\""),
 *                    "text" | "base64" | "size" [, "seed"], "count" (with "pattern": "bill-{n}.pdf", "from": 1),
 *                    "status", "mime", "sha256" (may lie), "pages", "fail": bool, "source_url", "created_ms",
 *                    "fields": {} (replaced in its record), "without": [] (left out)}
 *                    with the id of one there is: changes it
 *   POST /rename    {"document" | "session", "name"}
 *   POST /attach, /detach {"session", "document"}
 *   POST /delete-session {"session"}   POST /delete-document {"document"}
 *   POST /run       {"document" | "session", "at_once": bool}   parsing; at_once: done when this returns
 *   POST /demo                                 what --seed-demo makes
 *
 *   Of Rossum, whose part of /state is under "rossum"; ids are numbers, or texts of digits:
 *   POST /rossum/workspace {"id", "name"}
 *   POST /rossum/queue {"id", "name", "workspace" (null: none), "status", "accepted_mime_types": [], "fields", "without"}
 *                    with the id of one there is: changes it; so below
 *   POST /rossum/user {"username", "password", "queues": [ids] or "all"}
 *   POST /rossum/token {"token", "user", "expires_in_ms"}   POST /rossum/revoke {"token"}   absent: all
 *   POST /rossum/annotation {"queue", "id", "filename" or "filename_json", "text" | "base64" | "size" [, "seed"],
 *                    "count" (with "pattern", "from"), "document" (an id, which may be there), "mime",
 *                    "status" (one of the 15) or "status_raw" (any text), "attachment_status", "metadata": {},
 *                    "created_ms", "modified_ms", "fields", "without", "document_fields", "document_without"}
 *   POST /rossum/replace {"annotation", "filename", "text" | "base64" | "size"}   a new document in its place
 *   POST /rossum/delete {"annotation" | "queue"}   as if it had never been
 *   POST /rossum/demo
 *
 *   GET  /document/ID/content                  the bytes; in-process POST /content {"document"}: as base64
 *
 * A fault rule: which requests, when, and what then.
 *   "origin", "method", "route" (a name from --help), "path" (extended regex)       all absent: every request
 *   "nth": 1   from which matching request on; "times": 1, 0 for ever; "probability": 1 (POST /set {"seed"})
 *   "when": "unread" (headers read, body not) | "before" (processing, the default) | "after"
 *   "action": "status" with "status", "body" (text or JSON), "headers": {}; "close" ("reset": true for RST);
 *	     "stall" with "ms" (absent: until /faults/clear), then goes on as if nothing had been;
 *	     "truncate" with "bytes" of the answer's body; "garble";
 *	     "slow_response", "slow_request" with "bytes_per_s"
 * The first rule that matches acts. A client that leaves ends its stall; what it asked for "before" is then not
 * done. */

#endif
