"""From evidence to rollout: canary stages, Istio, Prometheus and Grafana."""
