-- What the processes' roles lacked: a worker records what a sampler was made of when the save that makes it has run.
GRANT INSERT ON samplers TO tinworks_worker;
