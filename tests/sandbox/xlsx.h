#ifndef SESSIONFS_TESTS_SANDBOX_XLSX_H
#define SESSIONFS_TESTS_SANDBOX_XLSX_H

#include <cjson/cJSON.h>
#include <stddef.h>

/* A spreadsheet with a row per value of {"group": {"field": value}}. Returns its size; the caller frees *ret. */
size_t xlsx_make(const cJSON *data, char **ret);

#endif
