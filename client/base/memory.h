/* Memory that was freed and stays resident. */
#pragma once

/* Gives back to the system what can be: after work that took megabytes for a while. Takes milliseconds, and makes the next such work
 * a little slower. Any thread, no lock. */
void memory_give_back(void);
