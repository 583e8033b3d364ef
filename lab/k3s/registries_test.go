package main

import (
	"strings"
	"testing"
)

func TestHostsFiles(t *testing.T) {
	r, err := parseRegistries([]byte(`
mirrors:
  "*":
    endpoint: ["http://10.0.145.1:5000"]
  docker.io:
    endpoint: ["https://hub.schule.lan/mirror"]
configs:
  hub.schule.lan:
    tls: {ca_file: /etc/ca.crt, insecure_skip_verify: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	files := r.hostsFiles()
	all := files["_default"]
	if !strings.Contains(all, `[host."http://10.0.145.1:5000"]`) || strings.Contains(all, "server =") {
		t.Errorf("_default:\n%s", all)
	}
	hub := files["docker.io"]
	for _, want := range []string{
		`server = "https://registry-1.docker.io"`, `[host."https://hub.schule.lan/mirror"]`, "override_path = true",
		`ca = ["/etc/ca.crt"]`, "skip_verify = true", `[host."http://10.0.145.1:5000"]`,
	} {
		if !strings.Contains(hub, want) {
			t.Errorf("docker.io lacks %q:\n%s", want, hub)
		}
	}
	if strings.Index(hub, "hub.schule.lan/mirror") > strings.Index(hub, "10.0.145.1:5000") {
		t.Error("the registry's own endpoint must come before that of \"*\"")
	}
}

func TestRegistriesRefusals(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key":  "mirror: {}\n",
		"bare address": "mirrors: {\"*\": {endpoint: [\"10.0.145.1:5000\"]}}\n",
		"rewrite":      "mirrors: {\"*\": {rewrite: {a: b}}}\n",
		"auth":         "configs: {x: {auth: {username: u}}}\n",
	} {
		if _, err := parseRegistries([]byte(text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := parseRegistries(nil); err != nil {
		t.Errorf("an empty file must be accepted: %v", err)
	}
}
