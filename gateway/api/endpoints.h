/* endpoints.h - every endpoint, by family; routes.c says where each one is served. */
#ifndef API_ENDPOINTS_H
#define API_ENDPOINTS_H

#include "api/gateway.h"

typedef enum http_verdict endpoint(struct call *c);

/* service.c: what the service is */
endpoint api_healthz, api_client_config, api_dynamic_config, api_capabilities, api_telemetry;
/* auth.c: the caller's own key */
endpoint api_token, api_show_key, api_delete_key;
/* sessions.c, search.c, projects.c */
endpoint api_create_session, api_heartbeat, api_finish_session, api_list_sessions, api_get_session,
    api_trace_export;
endpoint api_search_sessions, api_set_project;
/* models.c, info.c: runs are born, loaded, and asked about */
endpoint api_create_model, api_load_weights, api_get_info, api_weights_info, api_unload_model;
/* train.c */
endpoint api_forward_backward, api_forward, api_optim_step;
/* weights.c */
endpoint api_save_weights, api_save_sampler, api_save_external;
/* samplers.c, asample.c */
endpoint api_create_sampler, api_get_sampler, api_join_sampler, api_asample, api_sample;
/* futures.c, polls.c */
endpoint api_retrieve_future, api_cancel_future, api_retrieve_futures;
/* catalog.c: what the account has; checkpoints.c: what it does to a checkpoint; copies.c */
endpoint api_list_runs, api_get_run, api_run_checkpoints, api_list_checkpoints;
endpoint api_delete_checkpoint, api_publish, api_unpublish, api_set_ttl, api_copy_weights;
/* downloads.c: checkpoints as files */
endpoint api_weights_urls, api_archive, api_file;
/* usage.c, audit.c: the books */
endpoint api_usage_events, api_storage, api_audit;

/* routes.c */
extern const struct http_route api_routes[];
extern const int api_route_count;

#endif
