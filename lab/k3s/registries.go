package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// registries is /etc/rancher/k3s/registries.yaml: where images are really fetched.
type registries struct {
	Mirrors map[string]struct {
		Endpoints []string          `yaml:"endpoint"`
		Rewrites  map[string]string `yaml:"rewrite"`
	} `yaml:"mirrors"`
	Configs map[string]struct {
		Auth any          `yaml:"auth"`
		TLS  *registryTLS `yaml:"tls"`
	} `yaml:"configs"`
}

type registryTLS struct {
	CAFile             string `yaml:"ca_file"`
	CertFile           string `yaml:"cert_file"`
	KeyFile            string `yaml:"key_file"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

func parseRegistries(b []byte) (*registries, error) {
	r := &registries{}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(r); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for name, m := range r.Mirrors {
		if len(m.Rewrites) > 0 {
			return nil, fmt.Errorf("mirror %q: rewrite is not in this build", name)
		}
		for _, e := range m.Endpoints {
			u, err := url.Parse(e)
			if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
				return nil, fmt.Errorf("mirror %q: endpoint %q must be http://HOST[:PORT] or https://HOST[:PORT]", name, e)
			}
		}
	}
	for name, c := range r.Configs {
		if c.Auth != nil {
			return nil, fmt.Errorf("config %q: auth is not in this build", name)
		}
	}
	return r, nil
}

// hostsFiles renders containerd's hosts.toml files, keyed by their directory below config_path.
// A registry of its own uses its own endpoints before those of "*", as K3s does.
func (r *registries) hostsFiles() map[string]string {
	names := map[string]bool{}
	for n := range r.Mirrors {
		names[n] = true
	}
	for n := range r.Configs {
		names[n] = true
	}
	out := map[string]string{}
	for n := range names {
		var b strings.Builder
		b.WriteString("# Written by k3s from " + registriesFile + " at every start.\n")
		if n != "*" {
			fmt.Fprintf(&b, "server = %q\n", registryServer(n))
		}
		seen := map[string]bool{}
		for _, e := range append(append([]string{}, r.Mirrors[n].Endpoints...), r.Mirrors["*"].Endpoints...) {
			if !seen[e] {
				seen[e] = true
				r.writeHost(&b, e)
			}
		}
		if n != "*" && r.Configs[n].TLS != nil && !seen[registryServer(n)] {
			r.writeHost(&b, registryServer(n))
		}
		dir := n
		if n == "*" {
			dir = "_default"
		}
		out[dir] = b.String()
	}
	return out
}

func registryServer(name string) string {
	if name == "docker.io" {
		return "https://registry-1.docker.io"
	}
	return "https://" + name
}

func (r *registries) writeHost(b *strings.Builder, endpoint string) {
	u, err := url.Parse(endpoint)
	if err != nil { // parseRegistries has refused it
		return
	}
	path := strings.TrimSuffix(u.Path, "/")
	fmt.Fprintf(b, "\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", strings.TrimSuffix(endpoint, "/"))
	if path != "" && path != "/v2" {
		b.WriteString("  override_path = true\n")
	}
	t := r.Configs[u.Host].TLS
	if t == nil {
		return
	}
	if t.CAFile != "" {
		fmt.Fprintf(b, "  ca = [%q]\n", t.CAFile)
	}
	if t.CertFile != "" {
		fmt.Fprintf(b, "  client = [[%q, %q]]\n", t.CertFile, t.KeyFile)
	}
	if t.InsecureSkipVerify {
		b.WriteString("  skip_verify = true\n")
	}
}

// writeRegistries turns registries.yaml, if there is one, into containerd's certs.d directory.
func writeRegistries() error {
	if err := os.RemoveAll(registryHosts); err != nil {
		return err
	}
	if err := os.MkdirAll(registryHosts, 0o700); err != nil {
		return err
	}
	b, err := os.ReadFile(registriesFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := parseRegistries(b)
	if err != nil {
		return fmt.Errorf("%s: %w", registriesFile, err)
	}
	files := r.hostsFiles()
	dirs := make([]string, 0, len(files))
	for d := range files {
		dirs = append(dirs, d)
	}
	sort.Strings(dirs)
	for _, d := range dirs {
		if err := writeFile(filepath.Join(registryHosts, d, "hosts.toml"), []byte(files[d]), 0o600); err != nil {
			return err
		}
	}
	return nil
}
