/* Queues, which are sessions here, and the workspaces they are in. */
#include "client/rossum_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/base/cleanup.h"
#include "client/base/log.h"
#include "client/common.h"

void named_note(struct rossum *s, struct named **list, const cJSON *item)
{
	struct json_id room;
	const char *id = rossum_own_id(item, &room), *name = rossum_text_of(item, "name");
	struct named *w;
	SCOPED_LOCK(&s->lock);

	for (w = *list; id && w && strcmp(w->id, id) != 0;)
		w = w->next;
	if (!id || w)
		return;
	w = calloc(1, sizeof(*w));
	if (!w)
		return; /* without memory nothing is learned, and names are told apart by id */
	w->id = strdup(id);
	w->name = strdup(name ? name : "");
	if (!w->id || !w->name) {
		free(w->id);
		free(w->name);
		free(w);
		return;
	}
	w->next = *list;
	*list = w;
}

bool named_look(struct rossum *s, struct named *const *list, const char *id, char **ret_name)
{
	SCOPED_LOCK(&s->lock);
	const struct named *w = *list;

	while (w && strcmp(w->id, id) != 0)
		w = w->next;
	*ret_name = w && w->name[0] ? strdup(w->name) : NULL;
	return w != NULL;
}

/* A side question: names can be told apart without it. */
static void learn_workspaces(struct rossum *s, struct call *call)
{
	CLEANUP(pages_release) struct pages pages = PAGES;
	int r = 1;

	buf_addf(&pages.path, "/workspaces?page_size=%d&ordering=id", PAGE);
	while (r > 0) {
		CLEANUP(json_release) cJSON *body = NULL;
		const cJSON *results = NULL, *item;

		r = pages_next(s, call, &pages, &body, &results);
		cJSON_ArrayForEach (item, results)
			named_note(s, &s->workspaces, item);
	}
}

static void learn_workspace(struct rossum *s, struct call *call, const char *id)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);
	CLEANUP(json_release) cJSON *body = NULL;

	buf_addf(&path, "/workspaces/%s", id);
	const struct http_request q = { .method = "GET", .path = buf_text(&path), .accepts_any = true };
	if (rossum_ask_json(s, call, &q, &body) == 0)
		named_note(s, &s->workspaces, body);
}

static bool mime_matches(const char *pattern, const char *mime)
{
	size_t len = strlen(pattern);

	if (strcmp(pattern, "*") == 0 || strcmp(pattern, "*/*") == 0)
		return true;
	if (len > 2 && strcmp(pattern + len - 2, "/*") == 0)
		return strncasecmp(pattern, mime, len - 1) == 0;
	return strcasecmp(pattern, mime) == 0;
}

/* The suffixes of the types a queue takes; NULL: it names none, or none we know a suffix of. */
static char *formats_of(const cJSON *queue)
{
	static const char *const suffixes[] = { "pdf",  "png", "jpg",  "jpeg", "tiff", "xlsx", "xls", "docx", "doc",
						"html", "htm", "pptx", "ppt",  "odt",  "rtf",  "bmp", "gif",  "webp",
						"heic", "xml", "json", "csv",  "txt",  "eml",  "msg", "zip" };
	const cJSON *types = rossum_member(rossum_member(queue, "settings"), "accepted_mime_types"), *type;
	CLEANUP(buf_release) struct buf text = BUF(400);

	if (!cJSON_IsArray(types))
		return NULL;
	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		char name[16];
		bool is_taken = false;

		snprintf(name, sizeof(name), "x.%s", suffixes[i]);
		cJSON_ArrayForEach (type, types)
			is_taken = is_taken ||
				   (cJSON_IsString(type) && mime_matches(type->valuestring, mime_by_name(name)));
		if (is_taken)
			buf_addf(&text, "%s%s", text.len ? " " : "", suffixes[i]);
	}
	return text.len ? buf_take(&text) : NULL;
}

static char *copy_or_null(const char *text, bool *ok)
{
	char *own = text ? strdup(text) : NULL;

	*ok = *ok && (!text || own);
	return own;
}

int rossum_read_queue(const cJSON *item, struct session *ret)
{
	struct json_id id_room, workspace_room, schema_room;
	const char *id = rossum_own_id(item, &id_room), *name = rossum_text_of(item, "name"),
		   *status = rossum_text_of(item, "status");
	CLEANUP(session_release) struct session found = { .created_ms = -1 };
	bool ok = true;

	if (!id) {
		log_warning("rossum: queue: it has no id we can use");
		return -EPROTO;
	}
	found.id = copy_or_null(id, &ok);
	found.name = copy_or_null(name ? name : "", &ok);
	found.workspace_id = copy_or_null(rossum_ref_in(item, "workspace", &workspace_room), &ok);
	found.template_id = copy_or_null(rossum_ref_in(item, "schema", &schema_room), &ok);
	found.status = copy_or_null(status, &ok);
	found.formats = formats_of(item);
	found.updated_ms = rossum_time_of(item, "modified_at");
	found.is_closed = status && strcmp(status, "active") != 0;
	if (!ok)
		return -ENOMEM;
	*ret = found;
	found = (struct session){ 0 };
	return 0;
}

int rossum_get_queue_json(struct rossum *s, struct call *call, const char *queue_id, cJSON **ret)
{
	CLEANUP(buf_release) struct buf path = BUF(PATH_BYTES_MAX);

	if (!rossum_is_digits(queue_id)) /* an id of another service, or somebody's guess */
		return rossum_fail(call, FAULT_GONE, -ENOENT, "this cannot be the id of a queue");
	buf_addf(&path, "/queues/%s", queue_id);
	return rossum_get_json(s, call, buf_text(&path), ret);
}

int rossum_get_session(struct backend *b, struct call *call, const char *session_id, struct session *ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(json_release) cJSON *body = NULL;
	CLEANUP(session_release) struct session found = { 0 };
	int r = rossum_get_queue_json(s, call, session_id, &body);

	if (r < 0)
		return r;
	r = rossum_read_queue(body, &found);
	if (r < 0)
		return rossum_fail(call, r == -EPROTO ? FAULT_AWAY : FAULT_NONE, r, "this is not a queue");
	if (found.workspace_id && !named_look(s, &s->workspaces, found.workspace_id, &found.qualifier)) {
		learn_workspace(s, call, found.workspace_id);
		call_forget_fault(call);
		(void)named_look(s, &s->workspaces, found.workspace_id, &found.qualifier); /* NULL: nobody tells */
	}
	*ret = found;
	found = (struct session){ 0 };
	return 0;
}

/* Is it one of those named by queue=, if any are? */
static bool queue_is_wanted(struct rossum *s, const struct session *queue)
{
	const char *wanted = NULL;

	for (int i = 0; s->option && (wanted = s->option(s->arg, "queue", i)); i++) {
		if (strcmp(wanted, queue->id) == 0 || strcmp(wanted, queue->name) == 0)
			return true;
	}
	return !s->option || !s->option(s->arg, "queue", 0);
}

static int add_queue(struct rossum *s, const cJSON *item, struct session_list *ret)
{
	CLEANUP(session_release) struct session queue = { 0 };
	int r = rossum_read_queue(item, &queue);

	if (r < 0 || session_list_has(ret, queue.id) || !queue_is_wanted(s, &queue))
		return r;
	if ((ret->count & (ret->count - 1)) == 0) { /* room doubles */
		struct session *items = realloc(ret->items, (size_t)(ret->count ? ret->count * 2 : 1) * sizeof(*items));

		if (!items)
			return -ENOMEM;
		ret->items = items;
	}
	ret->items[ret->count++] = queue;
	queue = (struct session){ 0 };
	return 0;
}

/* All punctuation is one: in a folder's name some of it becomes '_'. */
static int loosely(char c)
{
	return iscntrl((unsigned char)c) || ispunct((unsigned char)c) ? '_' : (unsigned char)c;
}

static int compare_names(const void *a, const void *b)
{
	const char *x = *(const char *const *)a, *y = *(const char *const *)b;

	while (*x && *y && loosely(*x) == loosely(*y)) {
		x++;
		y++;
	}
	return *x && *y ? loosely(*x) - loosely(*y) : (*x != '\0') - (*y != '\0');
}

/* Would two of them be folders of one name? */
static bool have_twins(const struct session_list *l)
{
	const char **names = calloc((size_t)l->count + 1, sizeof(*names));
	bool found = !names; /* without memory it is believed */

	for (int i = 0; names && i < l->count; i++)
		names[i] = l->items[i].name;
	if (names)
		qsort(names, (size_t)l->count, sizeof(*names), compare_names);
	for (int i = 1; names && i < l->count && !found; i++)
		found = compare_names(&names[i - 1], &names[i]) == 0;
	free(names);
	return found;
}

/* The workspaces' names, which are asked for where any two queues need one. */
static void qualify(struct rossum *s, struct call *call, struct session_list *l)
{
	bool has_asked = !have_twins(l);

	for (int i = 0; i < l->count; i++) {
		struct session *queue = &l->items[i];

		if (!queue->workspace_id || named_look(s, &s->workspaces, queue->workspace_id, &queue->qualifier) ||
		    has_asked)
			continue;
		learn_workspaces(s, call);
		call_forget_fault(call);
		has_asked = true;
		(void)named_look(s, &s->workspaces, queue->workspace_id, &queue->qualifier);
	}
}

int rossum_list_sessions(struct backend *b, struct call *call, struct session_list *ret)
{
	struct rossum *s = rossum_from(b);
	CLEANUP(session_list_release) struct session_list found = { 0 };
	CLEANUP(pages_release) struct pages pages = PAGES;
	int r = 1;

	buf_addf(&pages.path, "/queues?page_size=%d&ordering=id", PAGE);
	while (r > 0) {
		CLEANUP(json_release) cJSON *body = NULL;
		const cJSON *results = NULL, *item;

		r = pages_next(s, call, &pages, &body, &results);
		cJSON_ArrayForEach (item, results) {
			int added = add_queue(s, item, &found);

			if (added < 0)
				return rossum_fail(call, added == -EPROTO ? FAULT_AWAY : FAULT_NONE, added,
						   "a queue cannot be read");
		}
	}
	if (r < 0)
		return r;
	qualify(s, call, &found);
	*ret = found;
	found = (struct session_list){ 0 };
	return 0;
}

/* Digits alone, or those behind "queues/" in an address. */
int rossum_find_session_id(struct backend *b, const char *text, char **ret)
{
	static const char mark[] = "queues/";
	const char *at = strstr(text, mark);
	size_t len;

	for (; at; at = strstr(at + 1, mark)) {
		if (isdigit((unsigned char)at[sizeof(mark) - 1]))
			break;
	}
	at = at ? at + sizeof(mark) - 1 : text + strspn(text, " \t\r\n");
	len = strspn(at, "0123456789");
	bool is_alone = at[len + strspn(at + len, " \t\r\n")] == '\0';
	if (len == 0 || len > 18 || (at < text + sizeof(mark) && !is_alone) || isalnum((unsigned char)at[len]))
		return -ENOENT;
	*ret = strndup(at, len);
	return *ret ? 0 : -ENOMEM;
}
