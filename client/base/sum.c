/* Sums over bytes; see sum.h. */
#include "client/base/sum.h"

#include <string.h>

enum { LANES = 4 /* independent of each other, so that the processor has several under way */ };

static uint64_t stir(uint64_t sum, uint64_t word)
{
	sum = (sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);
	return sum ^ sum >> 32;
}

uint64_t sum_bytes(uint64_t sum, const void *bytes, size_t len)
{
	const unsigned char *p = bytes;
	uint64_t lanes[LANES], words[LANES], word;

	for (int i = 0; i < LANES; i++)
		lanes[i] = stir(sum ^ len, (uint64_t)i);
	for (; len >= sizeof(words); len -= sizeof(words), p += sizeof(words)) {
		memcpy(words, p, sizeof(words));
		for (int i = 0; i < LANES; i++)
			lanes[i] = stir(lanes[i], words[i]);
	}
	sum = 0;
	for (int i = 0; i < LANES; i++)
		sum = stir(sum, lanes[i]);
	for (; len >= sizeof(word); len -= sizeof(word), p += sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		sum = stir(sum, word);
	}
	word = 0;
	if (len > 0)
		memcpy(&word, p, len);
	return stir(sum, word);
}
