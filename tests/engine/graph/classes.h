#ifndef TESTS_ENGINE_GRAPH_CLASSES_H
#define TESTS_ENGINE_GRAPH_CLASSES_H
/* A small table of node types for tests of the loader: names and ports like the real ones, and a parameter of every
 * type. They cannot run. */
#include <math.h>

#include "engine/graph/graph.h"

#define TYPES(...)                                                                                                     \
    (const char *const[])                                                                                              \
    {                                                                                                                  \
        __VA_ARGS__, NULL                                                                                              \
    }

static const struct node_class class_model = {
    .name = "model",
    .version = 1,
    .summary = "a model",
    .params = (const struct param[]){{.name = "path", .type = PARAM_SOURCE, .help = "a directory"}, {0}}};

static const struct node_class class_corpus = {
    .name = "corpus",
    .version = 1,
    .summary = "windows of text",
    .ports = (const struct port[]){{"tokenizer", TYPES("model"), false, true, "whose tokenizer"}, {0}},
    .params = (const struct param[]){{.name = "text", .type = PARAM_SOURCE, .help = "a text file"},
                                     {.name = "window",
                                      .type = PARAM_INT,
                                      .fallback = "256",
                                      .least = 2,
                                      .most = 65536,
                                      .unit = "token",
                                      .help = "size"},
                                     {.name = "documents", .type = PARAM_STRING, .fallback = "", .help = "separator"},
                                     {.name = "cache",
                                      .type = PARAM_SIZE,
                                      .fallback = "64MiB",
                                      .least = 1 << 20,
                                      .most = 0x1p40,
                                      .help = "bytes"},
                                     {0}},
    .outputs = (const struct output[]){{"calibration", ""}, {"selection", ""}, {"report", ""}, {0}}};

static const struct node_class class_teacher = {
    .name = "teacher",
    .version = 1,
    .summary = "reference states",
    .ports = (const struct port[]){{"model", TYPES("model"), false, false, "the original model"},
                                   {"tokens", TYPES("corpus.selection", "corpus.report"), false, false, "the windows"},
                                   {0}},
    .params = (const struct param[]){{.name = "numeric",
                                      .type = PARAM_ENUM,
                                      .fallback = "fp32",
                                      .choices = TYPES("fp32", "bf16"),
                                      .help = "arithmetic"},
                                     {0}}};

static const struct node_class class_hessian = {
    .name = "hessian",
    .version = 1,
    .summary = "second moments",
    .ports = (const struct port[]){{"model", TYPES("model"), false, false, "the original model"},
                                   {"tokens", TYPES("corpus"), false, false, "the calibration windows"},
                                   {0}},
    .params = (const struct param[]){
        {.name = "damping",
         .type = PARAM_FLOAT,
         .fallback = "0.01",
         .least = 0,
         .most = 1,
         .help = "share of the mean"},
        {.name = "scale", .type = PARAM_FLOAT, .fallback = "1", .least = 0.5, .most = INFINITY, .help = "factor"},
        {.name = "exact", .type = PARAM_BOOL, .fallback = "false", .help = "f64"},
        {0}}};

static const struct node_class class_quantize = {
    .name = "quantize",
    .version = 1,
    .summary = "renderings",
    .ports = (const struct port[]){{"model", TYPES("model"), false, false, "the model to quantize"},
                                   {"hessian", TYPES("hessian"), false, true, "second moments"},
                                   {0}},
    .params = (const struct param[]){
        {.name = "formats",
         .type = PARAM_ENUM,
         .many = true,
         .fallback = "nvfp4, fp8, bf16",
         .choices = TYPES("nvfp4", "nvfp4_a16", "fp8", "bf16"),
         .help = "the menu"},
        {.name = "weights", .type = PARAM_FLOAT, .many = true, .fallback = "", .help = "numbers"},
        {0}}};

static const struct node_class class_frontier = {
    .name = "frontier",
    .version = 1,
    .summary = "proposals",
    .ports = (const struct port[]){{"renderings", TYPES("quantize"), false, false, "packed weights"},
                                   {"rows", TYPES("measure"), true, true, "what was measured"},
                                   {0}},
    .params = (const struct param[]){{.name = "count",
                                      .type = PARAM_INT,
                                      .fallback = "16",
                                      .least = 1,
                                      .most = 4096,
                                      .unit = "candidate",
                                      .help = "proposals"},
                                     {.name = "bytes",
                                      .type = PARAM_SIZE,
                                      .fallback = "0",
                                      .one_of = "is a budget by itself",
                                      .help = "most"},
                                     {.name = "bpp",
                                      .type = PARAM_FLOAT,
                                      .fallback = "0",
                                      .one_of = "is a budget by itself",
                                      .help = "most"},
                                     {0}}};

static const struct node_class class_measure = {
    .name = "measure",
    .version = 1,
    .summary = "KL of candidates",
    .ports =
        (const struct port[]){{"teacher", TYPES("teacher"), false, false, "the reference"},
                              {"candidates", TYPES("frontier", "measure", "select"), true, false, "what to measure"},
                              {"after", TYPES("measure"), false, true, "the round before"},
                              {0}}};

static const struct node_class class_select = {
    .name = "select",
    .version = 1,
    .summary = "frontier and knee",
    .ports = (const struct port[]){{"rows", TYPES("measure"), true, false, "measured rows"}, {0}},
    .params = (const struct param[]){{.name = "directory", .type = PARAM_PATH, .fallback = "export", .help = "where"},
                                     {.name = "budget", .type = PARAM_SIZE, .help = "bytes"},
                                     {0}}};

static const struct node_class class_list = {
    .name = "list",
    .version = 1,
    .summary = "takes anything",
    .ports = (const struct port[]){{"of", NULL, true, true, "nodes"}, {"one", NULL, false, true, "a node"}, {0}}};

static const struct node_class *const classes[] = {
    &class_model,    &class_corpus,  &class_teacher, &class_hessian, &class_quantize,
    &class_frontier, &class_measure, &class_select,  &class_list,    NULL};

#endif
