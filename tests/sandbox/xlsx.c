/* The smallest workbook that spreadsheet programs open: one sheet, texts in place, a zip without compression. */
#include "tests/sandbox/xlsx.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct part {
	const char *name;
	const char *text;
	uint32_t crc, bytes, offset;
};

static uint32_t crc_of(const char *text, size_t count)
{
	uint32_t crc = 0xffffffffu;
	for (size_t i = 0; i < count; i++) {
		crc ^= (unsigned char)text[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

static void put(FILE *out, uint32_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		fputc((int)(value >> (8 * i) & 0xff), out);
}

static void put_header(FILE *out, const struct part *p, int is_central)
{
	put(out, is_central ? 0x02014b50 : 0x04034b50, 4);
	if (is_central)
		put(out, 20, 2);
	put(out, 20, 2);
	put(out, 0, 4);          /* flags, method: stored */
	put(out, 0x58210000, 4); /* 2024-01-01 */
	put(out, p->crc, 4);
	put(out, p->bytes, 4);
	put(out, p->bytes, 4);
	put(out, (uint32_t)strlen(p->name), 2);
	put(out, 0, 2);
	if (is_central) {
		put(out, 0, 2); /* comment, disk, attributes */
		put(out, 0, 4);
		put(out, 0, 4);
		put(out, p->offset, 4);
	}
	fputs(p->name, out);
}

static void put_cell(FILE *out, const char *text)
{
	fputs("<c t=\"inlineStr\"><is><t>", out);
	for (; *text != 0; text++) {
		if (*text == '<' || *text == '&')
			fprintf(out, "&#%d;", *text);
		else
			fputc(*text, out);
	}
	fputs("</t></is></c>", out);
}

#define XML "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n"
#define SHEETS "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
#define RELATIONS "http://schemas.openxmlformats.org/package/2006/relationships"
#define OFFICE "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
#define TYPES "application/vnd.openxmlformats-officedocument.spreadsheetml."

size_t xlsx_make(const cJSON *data, char **ret)
{
	char *sheet = NULL;
	size_t sheet_bytes = 0, bytes = 0;
	FILE *out = open_memstream(&sheet, &sheet_bytes);
	if (out == NULL)
		abort();
	fputs(XML "<worksheet xmlns=\"" SHEETS "\"><sheetData>", out);
	const cJSON *group, *field;
	cJSON_ArrayForEach (group, data) {
		cJSON_ArrayForEach (field, group) {
			char *value = cJSON_PrintUnformatted(field);
			fputs("<row>", out);
			put_cell(out, group->string);
			put_cell(out, field->string == NULL ? "" : field->string);
			put_cell(out, value == NULL ? "" : value);
			fputs("</row>", out);
			free(value);
		}
	}
	fputs("</sheetData></worksheet>", out);
	fclose(out);

	struct part parts[] = {
		{ .name = "[Content_Types].xml",
		  .text = XML "<Types xmlns=\"http://schemas.openxmlformats.org/package/2006/content-types\">"
			      "<Default Extension=\"rels\" "
			      "ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>"
			      "<Override PartName=\"/xl/workbook.xml\" ContentType=\"" TYPES "sheet.main+xml\"/>"
			      "<Override PartName=\"/xl/worksheets/sheet1.xml\" ContentType=\"" TYPES
			      "worksheet+xml\"/></Types>" },
		{ .name = "_rels/.rels",
		  .text = XML "<Relationships xmlns=\"" RELATIONS "\"><Relationship Id=\"rId1\" Type=\"" OFFICE
			      "/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>" },
		{ .name = "xl/workbook.xml",
		  .text = XML "<workbook xmlns=\"" SHEETS "\" xmlns:r=\"" OFFICE
			      "\"><sheets><sheet name=\"Data\" sheetId=\"1\" r:id=\"rId1\"/></sheets></workbook>" },
		{ .name = "xl/_rels/workbook.xml.rels",
		  .text = XML "<Relationships xmlns=\"" RELATIONS "\"><Relationship Id=\"rId1\" Type=\"" OFFICE
			      "/worksheet\" Target=\"worksheets/sheet1.xml\"/></Relationships>" },
		{ .name = "xl/worksheets/sheet1.xml", .text = sheet },
	};
	size_t count = sizeof parts / sizeof parts[0];
	out = open_memstream(ret, &bytes);
	if (out == NULL)
		abort();
	for (size_t i = 0; i < count; i++) {
		parts[i].bytes = (uint32_t)strlen(parts[i].text);
		parts[i].crc = crc_of(parts[i].text, parts[i].bytes);
		parts[i].offset = (uint32_t)ftell(out);
		put_header(out, &parts[i], 0);
		fputs(parts[i].text, out);
	}
	uint32_t central = (uint32_t)ftell(out);
	for (size_t i = 0; i < count; i++)
		put_header(out, &parts[i], 1);
	uint32_t central_bytes = (uint32_t)ftell(out) - central;
	put(out, 0x06054b50, 4);
	put(out, 0, 4);
	put(out, (uint32_t)count, 2);
	put(out, (uint32_t)count, 2);
	put(out, central_bytes, 4);
	put(out, central, 4);
	put(out, 0, 2);
	fclose(out);
	free(sheet);
	return bytes;
}
