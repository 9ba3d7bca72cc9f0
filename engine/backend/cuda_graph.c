/* Decode steps as graphs: launching a few hundred kernels one by one takes the processor longer
 * than they run. There is a graph for each number of rows and of pages that matter, captured when
 * a step of that size comes for the second time: what only comes once is not worth it, and by then
 * all its kernels are loaded. Idle rows fill a step up to its size. */

#include "engine/backend/cuda_internal.h"

#include <stdlib.h>

#define N_ROW_SIZES 7   /* 1, 2, 4 … 64 */
#define N_PAGE_SIZES 27 /* 1, 2, 4 …: 2^32 tokens */

struct graph {
    bool met;
    cudaGraphExec_t exec; /* NULL: not captured */
};

struct llm_cuda_graphs {
    bool off; /* capturing has failed: there may be no memory for it */
    struct graph graphs[N_ROW_SIZES][N_PAGE_SIZES];
};

uint32_t llm_cuda_graph_rows(uint32_t n_rows)
{
    uint32_t n = 1;

    while (n < n_rows && n < 1u << (N_ROW_SIZES - 1)) {
        n *= 2;
    }
    return n;
}

uint32_t llm_cuda_graph_pages(uint32_t n_pages)
{
    uint32_t n = 1;

    while (n < n_pages) {
        n *= 2;
    }
    return n;
}

int llm_cuda_graphs_init(struct llm_backend *b, struct llm_error *err)
{
    b->graphs = calloc(1, sizeof(*b->graphs));
    return b->graphs != NULL ? LLM_OK : llm_fail(err, LLM_ENOMEM, "out of memory");
}

void llm_cuda_graphs_free(struct llm_backend *b)
{
    for (int i = 0; b->graphs != NULL && i < N_ROW_SIZES * N_PAGE_SIZES; i++) {
        struct graph *g = &b->graphs->graphs[i / N_PAGE_SIZES][i % N_PAGE_SIZES];

        if (g->exec != NULL) {
            cudaGraphExecDestroy(g->exec);
        }
    }
    free(b->graphs);
}

static struct graph *graph_of(const struct llm_backend *b, const struct llm_cuda_shape *shape)
{
    int rows = 0, pages = 0;

    while (1u << rows < shape->rows) {
        rows++;
    }
    while (1u << pages < shape->pages_step) {
        pages++;
    }
    return &b->graphs->graphs[rows][pages];
}

static bool capture(struct llm_backend *b, struct llm_cuda_step *s, struct graph *g)
{
    cudaGraph_t graph = NULL;
    cudaError_t error = cudaStreamBeginCapture(b->compute, cudaStreamCaptureModeThreadLocal);

    if (error != cudaSuccess) {
        return false;
    }
    llm_cuda_forward(b, s);
    error = cudaStreamEndCapture(b->compute, &graph);
    if (error == cudaSuccess) {
        error = cudaGraphInstantiate(&g->exec, graph, 0);
    }
    if (graph != NULL) {
        cudaGraphDestroy(graph);
    }
    return error == cudaSuccess;
}

bool llm_cuda_graph_run(struct llm_backend *b, struct llm_cuda_step *s)
{
    struct graph *g = graph_of(b, &s->shape);
    cudaError_t before = b->error;

    if (g->exec == NULL) {
        if (b->graphs->off || !g->met) {
            g->met = true;
            return false;
        }
        if (!capture(b, s, g)) {
            b->graphs->off = true;
            b->error = before; /* what is sticky comes again */
            cudaGetLastError();
            return false;
        }
    }
    llm_cuda_try(b, cudaGraphLaunch(g->exec, b->compute), "a graph");
    if (b->options.beat != NULL) {
        b->options.beat(b->options.beat_ctx);
    }
    return true;
}
