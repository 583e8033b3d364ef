module school-postgres/lab/builds/pause

go 1.26
