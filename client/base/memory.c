/* Memory that was freed and stays resident; see memory.h. */
#include "client/base/memory.h"

#include <features.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

void memory_give_back(void)
{
#ifdef __GLIBC__
	(void)malloc_trim(0);
#endif
}
