"""Strategies of :class:`components.postgres_cluster.PostgresCluster`: one module for each PostgreSQL operator."""
