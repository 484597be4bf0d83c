/* model_file.h - inside the engine: the files of a Hugging Face folder, checked against its
 * configuration, and which tensor of them goes where.
 *
 * Opening reads headers only: names, shapes, formats and sizes of all files are right, and every
 * place of the model has its tensor, before any memory is sized by them. */
#ifndef ENGINE_MODEL_FILE_H
#define ENGINE_MODEL_FILE_H

#include <jansson.h>
#include "engine/model.h"
#include "engine/safetensors.h"

#define MODEL_SHARDS_MAX 512
#define SLOT_NAME_MAX    80

enum slot_kind { SLOT_GAIN, SLOT_MATRIX, SLOT_TABLE, SLOT_TIED_COPY };

/* A place of the model, by the name of the tensor that belongs there.  SLOT_TABLE is the embedding;
 * tied, it is the unembedding's matrix too.  SLOT_TIED_COPY: a tied folder may carry the embedding
 * a second time, and it must then be the same. */
struct slot {
    char name[SLOT_NAME_MAX];
    enum slot_kind kind;
    int layer;                            /* -1: of none */
    int64_t rows, cols;                   /* of the whole model's; cols 0: a vector */
    enum cut cut;                         /* of what is packed */
    float **gain;                         /* SLOT_GAIN: where the model keeps it */
    struct packed **ahead, **back;        /* what is packed; else NULL */
    const struct safetensors_tensor *found; /* NULL: not there */
};

struct model_files {
    struct slot *slots;
    int slot_count;
    struct safetensors *files[MODEL_SHARDS_MAX]; /* in order of name */
    char *paths[MODEL_SHARDS_MAX];
    int count;
    size_t size; /* of all files */
};

/* The slots of mw's configuration, pointing into mw (whose arrays of layers exist); f is empty. */
int model_slots_make(struct model_files *f, struct model_weights *mw, struct err *e) WARN_UNUSED;

/* The same, and all files of dir.  -1: ERR_USER when the folder is wrong; clear() in any case. */
int model_files_open(struct model_files *f, struct model_weights *mw, const char *dir,
                     struct err *e) WARN_UNUSED;
void model_files_clear(struct model_files *f);

struct slot *model_slot_of(struct model_files *f, const char *tensor);

/* mw with its ranks' configuration read from dir and arrays for its layers (model_load.c). */
int model_weights_begin(struct model_weights *mw, const char *dir, int ranks, struct err *e) WARN_UNUSED;
/* Device memory for the gains and the table, once mw->dtype is known. */
int model_room_make(const struct model_files *f, struct model_weights *mw, struct err *e) WARN_UNUSED;
/* What slot s has found goes where it belongs: copied, or packed for both directions. */
int model_slot_load(struct model_weights *mw, const struct slot *s, struct err *e) WARN_UNUSED;

#endif
