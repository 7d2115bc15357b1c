/* client/backend.c: the table of services, and the checks all of them share. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/backend_impl.h"
#include "client/base/cleanup.h"
#include "client/base/clock.h"
#include "client/base/secret.h"

static void each_service_is_found_by_its_name(void **state)
{
	const char *const *names = backend_services();
	bool has_raydocs = false;

	for (int i = 0; names[i]; i++) {
		const struct backend_option *o = backend_options(names[i]);

		assert_non_null(o);
		for (; o->name; o++) {
			assert_non_null(o->value_word);
			assert_non_null(o->help);
		}
		has_raydocs = has_raydocs || strcmp(names[i], "raydocs") == 0;
	}
	assert_true(has_raydocs);
	assert_null(backend_options("acme"));
	assert_null(backend_options(NULL));
}

static void an_unknown_service_is_told_in_a_sentence(void **state)
{
	const struct backend_config config = { .service = "acme" };
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct backend *b = NULL;

	assert_int_equal(backend_open(&config, &why, &b), -EINVAL);
	assert_string_equal(buf_text(&why), "there is no service 'acme'");
	assert_null(b);
	backend_close(NULL);
}

/* ---- whose credentials ---------------------------------------------------------------------------------------- */

static const char *token_in_use;

static int read_credentials(void *arg, struct credentials *ret)
{
	assert_string_equal(arg, "mine");
	ret->token = secret_new(token_in_use);
	return 0;
}

static const char *option(void *arg, const char *name, int nth)
{
	assert_string_equal(arg, "mine"); /* each callback gets what the caller gave */
	return NULL;
}

static void the_account_is_that_of_the_credentials_last_read(void **state)
{
	const struct backend_config config = { .service = "raydocs", .url = "http://127.0.0.1:9", .arg = (void *)"mine",
					       .read_credentials = read_credentials, .option = option };
	CLEANUP(buf_release) struct buf why = BUF(1000);
	struct backend *b = NULL;
	char account[65], expected[65];
	const char *const tokens[] = { "one", "another" };

	(void)state;
	for (int i = 0; i < 2; i++) {
		CLEANUP(secret_release) struct secret *token = secret_new(tokens[i]);
		struct call call = { .deadline_ms = clock_now_ms() + 200 };
		token_in_use = tokens[i];
		assert_int_equal(backend_open(&config, &why, &b), 0);
		backend_account(b, account);
		assert_string_equal(account, "");
		assert_true(backend_check(b, &call) < 0); /* nobody listens there */
		backend_account(b, account);
		secret_fingerprint(token, "http://127.0.0.1:9\n", expected); /* as options_fingerprint() */
		assert_string_equal(account, expected);
		backend_close(b);
	}
}

/* A backend that can do nothing, and counts. */
static int asked;

static int count_list(struct backend *b, struct call *call, const char *session_id, struct listing *known, struct listing **ret)
{
	asked++;
	call->fault.kind = FAULT_AWAY;
	return -EIO;
}

static const struct backend_ops bare_ops = { .name = "bare" };
static const struct backend_ops listing_ops = { .name = "listing", .list_documents = count_list };

static void an_op_that_is_missing_is_not_offered(void **state)
{
	struct backend b = { .ops = &bare_ops, .caps = { .attach_batch_max = 1 } };
	struct call call = { 0 };
	struct session s;
	struct listing *l;
	struct upload u = { .session_id = "s", .name = "n", .sha256 = "h", .step = UPLOAD_STORED, .ticket = (char[]){ "t" } };
	struct upload *us[] = { &u };
	CLEANUP(buf_release) struct buf text = BUF(100);

	assert_int_equal(backend_check(&b, &call), -EOPNOTSUPP);
	assert_int_equal(call.fault.kind, FAULT_INVALID);
	assert_int_equal(backend_describe(&b, &call, &text), -EOPNOTSUPP);
	assert_int_equal(backend_get_session(&b, &call, "s", &s), -EOPNOTSUPP);
	assert_int_equal(backend_run(&b, &call, "s"), -EOPNOTSUPP);
	assert_int_equal(backend_recall_documents(&b, "s", -1, &l), -EAGAIN);
	backend_forget(&b, NULL);
	assert_int_equal(backend_upload_attach(&b, &call, us, 1), -EOPNOTSUPP);
	assert_int_equal(u.error, -EOPNOTSUPP); /* what holds for all is each one's own */
	assert_int_equal(u.fault.kind, FAULT_INVALID);
}

static void a_call_begins_with_an_empty_fault(void **state)
{
	struct backend b = { .ops = &listing_ops };
	struct call call = { .fault = { .kind = FAULT_KEY, .words = "old", .may_have_happened = true, .http_status = 500 } };
	struct listing *l;

	asked = 0;
	assert_int_equal(backend_list_documents(&b, &call, "s-1", NULL, &l), -EIO);
	assert_string_equal(call.fault.words, "");
	assert_false(call.fault.may_have_happened);
	assert_int_equal(call.fault.retry_after_ms, -1);
	assert_int_equal(asked, 1);
}

static void what_cannot_be_an_id_is_asked_of_nobody(void **state)
{
	static const char *const ids[] = { "", "a/b", "..", ".", "a?b", "a b", "\xc3\xa4", "a%2fb", NULL };
	struct backend b = { .ops = &listing_ops };
	struct call call = { 0 };
	struct listing *l;

	asked = 0;
	for (int i = 0; i < 9; i++) {
		assert_int_equal(backend_list_documents(&b, &call, ids[i], NULL, &l), -ENOENT);
		assert_int_equal(call.fault.kind, FAULT_GONE);
	}
	assert_int_equal(asked, 0);
}

static void a_suffix_names_a_media_type_in_any_letter_case(void **state)
{
	static const struct { const char *name, *mime; } cases[] = {
		{ "a.pdf", "application/pdf" },	  { "A.B.PDF", "application/pdf" },
		{ "scan.TIF", "image/tiff" },	  { "x.jpg", "image/jpeg" },
		{ "x.unknown", "application/octet-stream" }, { "pdf", "application/octet-stream" },
		{ "x.", "application/octet-stream" },	  { "", "application/octet-stream" },
		{ NULL, "application/octet-stream" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(mime_by_name(cases[i].name), cases[i].mime);
}

static void each_state_has_its_word(void **state)
{
	static const char *const words[] = { "local", "queued", "uploading", "waiting", "stored", "processing", "ready", "failed" };

	for (int i = 0; i < 8; i++)
		assert_string_equal(document_state_word((enum document_state)i), words[i]);
}

static void a_copied_session_has_its_own_texts(void **state)
{
	struct session s = { .id = (char[]){ "1" }, .name = (char[]){ "n" }, .created_ms = 5, .is_closed = true };
	CLEANUP(session_release) struct session copy = { 0 };

	assert_int_equal(session_copy(&s, &copy), 0);
	assert_ptr_not_equal(copy.id, s.id);
	assert_string_equal(copy.name, "n");
	assert_null(copy.qualifier);
	assert_int_equal(copy.created_ms, 5);
	assert_true(copy.is_closed);
	session_release(NULL);
	session_list_release(NULL);
	template_list_release(NULL);
	credentials_release(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_service_is_found_by_its_name),
		cmocka_unit_test(an_unknown_service_is_told_in_a_sentence),
		cmocka_unit_test(the_account_is_that_of_the_credentials_last_read),
		cmocka_unit_test(an_op_that_is_missing_is_not_offered),
		cmocka_unit_test(a_call_begins_with_an_empty_fault),
		cmocka_unit_test(what_cannot_be_an_id_is_asked_of_nobody),
		cmocka_unit_test(a_suffix_names_a_media_type_in_any_letter_case),
		cmocka_unit_test(each_state_has_its_word),
		cmocka_unit_test(a_copied_session_has_its_own_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
