package main

import (
	"slices"
	"strings"
	"testing"
)

const serverYAML = `
token: "secret"
agent-token: other
datastore-endpoint: postgres://k3s@10.0.145.113:5432/k3s
tls-san: [10.0.145.116, "k3s-api.schule.lan"]
disable:
  - servicelb
  - traefik
secrets-encryption: true
write-kubeconfig-mode: "0640"
kubelet-arg: [fail-swap-on=false, "eviction-hard=memory.available<5%,nodefs.available<2%"]
node-ip: 10.0.145.110
`

func configOf(t *testing.T, role string, files ...string) (*Config, error) {
	t.Helper()
	values := map[string][]string{}
	for _, f := range files {
		var err error
		if values, err = mergeYAML([]byte(f), values); err != nil {
			return nil, err
		}
	}
	return newConfig(role, values)
}

func TestServerConfig(t *testing.T) {
	c, err := configOf(t, roleServer, serverYAML)
	if err != nil {
		t.Fatal(err)
	}
	if c.Token != "secret" || c.AgentToken != "other" || !c.SecretsEncryption || c.KubeconfigMode != 0o640 {
		t.Errorf("scalars were read wrongly: %+v", c)
	}
	if !slices.Equal(c.TLSSANs, []string{"10.0.145.116", "k3s-api.schule.lan"}) {
		t.Errorf("tls-san: %q", c.TLSSANs)
	}
	if len(c.KubeletArgs) != 2 {
		t.Errorf("a comma must not split kubelet-arg: %q", c.KubeletArgs)
	}
	if c.ClusterDNS != "10.43.0.10" || c.FlannelBackend != "vxlan" {
		t.Errorf("defaults: dns %s, backend %s", c.ClusterDNS, c.FlannelBackend)
	}
}

func TestDropInsReplaceAndAppend(t *testing.T) {
	c, err := configOf(t, roleServer, serverYAML, "tls-san+: [more.example]\nflannel-backend: host-gw\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.TLSSANs) != 3 || c.FlannelBackend != "host-gw" {
		t.Errorf("tls-san %q, backend %s", c.TLSSANs, c.FlannelBackend)
	}
}

func TestNetworkPoliciesAreOnUnlessTurnedOff(t *testing.T) {
	for yaml, want := range map[string]bool{serverYAML: false, serverYAML + "disable-network-policy: true\n": true} {
		c, err := configOf(t, roleServer, yaml)
		if err != nil {
			t.Fatal(err)
		}
		if c.DisableNetworkPolicy != want {
			t.Errorf("%t, want %t, from:\n%s", c.DisableNetworkPolicy, want, yaml)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	agent := "server: https://10.0.145.116:6443\ntoken: t\n"
	for name, try := range map[string]struct{ role, yaml, says string }{
		"unknown key":      {roleServer, serverYAML + "flanel-backend: vxlan\n", "unknown setting \"flanel-backend\""},
		"server's key":     {roleAgent, agent + "tls-san: [a]\n", "not one of the agent's"},
		"no agent token":   {roleAgent, "server: https://10.0.145.116:6443\n", "token is required"},
		"http server":      {roleAgent, "server: http://10.0.145.116\ntoken: t\n", "server must be given as https://"},
		"unquoted mode":    {roleServer, strings.Replace(serverYAML, `"0640"`, "0640", 1), "must be quoted"},
		"bad bool":         {roleServer, strings.Replace(serverYAML, "true", "maybe", 1), "must be true or false"},
		"dashes":           {roleAgent, agent + "kubelet-arg: [--v=2]\n", "without leading dashes"},
		"twice":            {roleAgent, agent + "token: u\n", "given twice"},
		"mapping":          {roleAgent, agent + "kubelet-arg: {v: 2}\n", "a value or a list"},
		"unknown backend":  {roleServer, serverYAML + "flannel-backend: wireguard-native\n", "vxlan and host-gw"},
		"servicelb absent": {roleServer, strings.Replace(serverYAML, "  - servicelb\n", "", 1), "list servicelb under disable"},
		"datastore":        {roleServer, strings.Replace(serverYAML, "postgres://", "mysql://", 1), "postgres://"},
	} {
		_, err := configOf(t, try.role, try.yaml)
		if err == nil || !strings.Contains(err.Error(), try.says) {
			t.Errorf("%s: got %v, want an error with %q", name, err, try.says)
		}
	}
}

func TestComponentArgs(t *testing.T) {
	got := componentArgs(map[string]string{"bind-address": "127.0.0.1", "profiling": "false"}, []string{"bind-address=0.0.0.0", "x=1", "x=2"})
	want := []string{"--bind-address=0.0.0.0", "--profiling=false", "--x=1", "--x=2"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
