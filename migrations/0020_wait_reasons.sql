-- No job waits for a later version of the server anymore: the work of all kinds of jobs exists.

update jobs set wait_reason = null where wait_reason = 'upgrade';
update jobs set error_class = 'internal' where error_class = 'upgrade';

alter table jobs
    drop constraint jobs_wait_reason_check,
    add constraint jobs_wait_reason_check check (wait_reason in ('key', 'model', 'time_slice')),
    drop constraint jobs_error_class_check,
    add constraint jobs_error_class_check check (error_class in
        ('key', 'model', 'model_settings', 'database', 'timeout', 'internal'));
