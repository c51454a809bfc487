-- What a project has set for itself is remembered with its keys, so a change of it is told as well.
drop trigger projects_changed on projects;
create trigger projects_changed
    after update of secret_key_hmac, secret_key_hash_phc, encryption_enabled, configs or delete on projects
    for each row execute function tell_project_changed();
