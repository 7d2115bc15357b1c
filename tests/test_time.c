/* client/time.c by a table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>

#include "client/time.h"

static void a_time_is_read_as_services_write_it(void **state)
{
	static const struct {
		const char *text;
		int64_t ms; /* -1: refused */
	} cases[] = {
		{ "1970-01-01T00:00:00Z", 0 },
		{ "2026-03-01T09:05:00Z", INT64_C(1772355900000) },
		{ "2026-03-01T09:05:00.123456Z", INT64_C(1772355900123) },
		{ "2026-03-01T09:05:00.1Z", INT64_C(1772355900100) },
		{ "2026-03-01T10:05:00+01:00", INT64_C(1772355900000) },
		{ "2026-03-01T04:35:00-0430", INT64_C(1772355900000) },
		{ "2026-03-01T09:05:00", INT64_C(1772355900000) },
		{ "2026-03-01 09:05:00", INT64_C(1772355900000) },
		{ "2024-02-29T23:59:60Z", INT64_C(1709251200000) }, /* a leap second */
		{ "", -1 },
		{ "yesterday", -1 },
		{ "2026-03-01", -1 },
		{ "2026-13-01T09:05:00Z", -1 },
		{ "2026-03-01T25:05:00Z", -1 },
		{ "2026-03-01T09:05:00.Z", -1 },
		{ "2026-03-01T09:05:00Zx", -1 },
		{ "2026-03-01T09:05:00+1", -1 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t ms = -1;
		int r = time_parse_iso(cases[i].text, &ms);

		if (ms != cases[i].ms || r != (cases[i].ms < 0 ? -EINVAL : 0))
			fail_msg("'%s': %d, %lld", cases[i].text, r, (long long)ms);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(a_time_is_read_as_services_write_it) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
