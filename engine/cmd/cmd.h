/* The commands of llm-engine. Each takes the words after its name and returns an exit status. */

#ifndef LLM_CMD_CMD_H
#define LLM_CMD_CMD_H

enum llm_exit { LLM_EXIT_OK = 0, LLM_EXIT_ERROR = 1, LLM_EXIT_USAGE = 2, LLM_EXIT_FAILED = 3 };

int llm_cmd_serve(int argc, char **argv);
int llm_cmd_tokenize(int argc, char **argv);
int llm_cmd_bench(int argc, char **argv);
int llm_cmd_cache_purge(int argc, char **argv);
int llm_cmd_keygen(int argc, char **argv);

#endif
