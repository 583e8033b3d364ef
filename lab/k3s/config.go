package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// The two roles of a machine in the cluster.
const (
	roleServer = "server"
	roleAgent  = "agent"
)

// Config holds the settings of one server or agent, read from config.yaml.
type Config struct {
	Token      string // server: the cluster's secret; agent: the secret it joins with
	AgentToken string // secret for agents only; the token when empty
	ServerURL  string // agent: https://ADDRESS:6443

	DatastoreEndpoint string
	DatastoreCAFile   string
	DatastoreCertFile string
	DatastoreKeyFile  string

	TLSSANs           []string
	Disable           []string
	SecretsEncryption bool
	KubeconfigMode    fs.FileMode

	NodeName   string
	NodeIP     string
	NodeLabels []string
	NodeTaints []string
	PauseImage string

	FlannelBackend string
	ClusterCIDR    string
	ServiceCIDR    string
	ClusterDNS     string
	ClusterDomain  string

	DisableNetworkPolicy bool

	KubeletArgs           []string
	KubeProxyArgs         []string
	APIServerArgs         []string
	ControllerManagerArgs []string
	SchedulerArgs         []string
}

// setting says how one key of config.yaml is stored.
type setting struct {
	roles string // "server", "agent" or "server agent"
	store func(c *Config, values []string) error
}

func text(field func(*Config) *string) func(*Config, []string) error {
	return func(c *Config, values []string) error {
		if len(values) != 1 {
			return errors.New("needs exactly one value")
		}
		*field(c) = values[0]
		return nil
	}
}

func list(field func(*Config) *[]string, splitCommas bool) func(*Config, []string) error {
	return func(c *Config, values []string) error {
		for _, v := range values {
			parts := []string{v}
			if splitCommas {
				parts = strings.Split(v, ",")
			}
			for _, p := range parts {
				if p = strings.TrimSpace(p); p != "" {
					*field(c) = append(*field(c), p)
				}
			}
		}
		return nil
	}
}

func truth(values []string) (bool, error) {
	if len(values) != 1 {
		return false, errors.New("needs exactly one value, true or false")
	}
	b, err := strconv.ParseBool(values[0])
	if err != nil {
		return false, fmt.Errorf("must be true or false, not %q", values[0])
	}
	return b, nil
}

// absent accepts a switch only in the position that this build has anyway.
func absent(only bool, what string) func(*Config, []string) error {
	return func(_ *Config, values []string) error {
		b, err := truth(values)
		if err != nil {
			return err
		}
		if b != only {
			return fmt.Errorf("must be %t: this build has no %s", only, what)
		}
		return nil
	}
}

var settings = map[string]setting{
	"token":              {"server agent", text(func(c *Config) *string { return &c.Token })},
	"agent-token":        {"server", text(func(c *Config) *string { return &c.AgentToken })},
	"server":             {"agent", text(func(c *Config) *string { return &c.ServerURL })},
	"datastore-endpoint": {"server", text(func(c *Config) *string { return &c.DatastoreEndpoint })},
	"datastore-cafile":   {"server", text(func(c *Config) *string { return &c.DatastoreCAFile })},
	"datastore-certfile": {"server", text(func(c *Config) *string { return &c.DatastoreCertFile })},
	"datastore-keyfile":  {"server", text(func(c *Config) *string { return &c.DatastoreKeyFile })},
	"tls-san":            {"server", list(func(c *Config) *[]string { return &c.TLSSANs }, true)},
	"disable":            {"server", list(func(c *Config) *[]string { return &c.Disable }, true)},
	"secrets-encryption": {"server", func(c *Config, v []string) (err error) { c.SecretsEncryption, err = truth(v); return err }},
	"write-kubeconfig-mode": {"server", func(c *Config, v []string) error {
		if len(v) != 1 {
			return errors.New("needs exactly one value")
		}
		m, err := strconv.ParseUint(v[0], 8, 32)
		if err != nil || m > 0o777 {
			return fmt.Errorf("must be an octal file mode such as \"0600\", not %q", v[0])
		}
		c.KubeconfigMode = fs.FileMode(m)
		return nil
	}},
	"node-name":                   {"server agent", text(func(c *Config) *string { return &c.NodeName })},
	"node-ip":                     {"server agent", text(func(c *Config) *string { return &c.NodeIP })},
	"node-label":                  {"server agent", list(func(c *Config) *[]string { return &c.NodeLabels }, true)},
	"node-taint":                  {"server agent", list(func(c *Config) *[]string { return &c.NodeTaints }, true)},
	"pause-image":                 {"server agent", text(func(c *Config) *string { return &c.PauseImage })},
	"flannel-backend":             {"server", text(func(c *Config) *string { return &c.FlannelBackend })},
	"cluster-cidr":                {"server", text(func(c *Config) *string { return &c.ClusterCIDR })},
	"service-cidr":                {"server", text(func(c *Config) *string { return &c.ServiceCIDR })},
	"cluster-dns":                 {"server", text(func(c *Config) *string { return &c.ClusterDNS })},
	"cluster-domain":              {"server", text(func(c *Config) *string { return &c.ClusterDomain })},
	"kubelet-arg":                 {"server agent", list(func(c *Config) *[]string { return &c.KubeletArgs }, false)},
	"kube-proxy-arg":              {"server agent", list(func(c *Config) *[]string { return &c.KubeProxyArgs }, false)},
	"kube-apiserver-arg":          {"server", list(func(c *Config) *[]string { return &c.APIServerArgs }, false)},
	"kube-controller-manager-arg": {"server", list(func(c *Config) *[]string { return &c.ControllerManagerArgs }, false)},
	"kube-scheduler-arg":          {"server", list(func(c *Config) *[]string { return &c.SchedulerArgs }, false)},
	"disable-network-policy":      {"server", func(c *Config, v []string) (err error) { c.DisableNetworkPolicy, err = truth(v); return err }},
	"disable-cloud-controller":    {"server", absent(true, "cloud controller")},
	"disable-helm-controller":     {"server", absent(true, "Helm controller")},
}

// readConfig reads config.yaml and its drop-ins and checks them for the role.
func readConfig(role string) (*Config, error) {
	values, err := readYAML(configFile, map[string][]string{})
	if err != nil {
		return nil, err
	}
	dropIns, err := filepath.Glob(configDropIns + "/*.yaml")
	if err != nil {
		return nil, err
	}
	sort.Strings(dropIns)
	for _, f := range dropIns {
		if values, err = readYAML(f, values); err != nil {
			return nil, err
		}
	}
	c, err := newConfig(role, values)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	return c, c.fillFromMachine()
}

func readYAML(path string, into map[string][]string) (map[string][]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	if into, err = mergeYAML(b, into); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return into, nil
}

// mergeYAML adds the keys of one file to those read before: a key replaces, "key+" appends.
func mergeYAML(b []byte, into map[string][]string) (map[string][]string, error) {
	var doc yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(b)).Decode(&doc); err != nil {
		return nil, fmt.Errorf("not valid YAML: %w", err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("must be a mapping of K3s settings")
	}
	seen := map[string]bool{}
	pairs := doc.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		key, value := pairs[i].Value, pairs[i+1]
		if seen[key] {
			return nil, fmt.Errorf("line %d: %s is given twice", pairs[i].Line, key)
		}
		seen[key] = true
		nodes := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			nodes = value.Content
		}
		texts := []string{}
		for _, n := range nodes {
			if n.Kind == yaml.AliasNode {
				n = n.Alias
			}
			if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
				return nil, fmt.Errorf("line %d: %s must be a value or a list of values", n.Line, key)
			}
			if key == "write-kubeconfig-mode" && n.Tag == "!!int" {
				return nil, fmt.Errorf("line %d: write-kubeconfig-mode must be quoted: K3s reads an unquoted 0600 as the number 384", n.Line)
			}
			texts = append(texts, n.Value)
		}
		if k, more := strings.CutSuffix(key, "+"); more {
			into[k] = append(slices.Clone(into[k]), texts...)
		} else {
			into[key] = texts
		}
	}
	return into, nil
}

func newConfig(role string, values map[string][]string) (*Config, error) {
	c := &Config{
		KubeconfigMode: 0o600,
		FlannelBackend: "vxlan",
		ClusterCIDR:    "10.42.0.0/16",
		ServiceCIDR:    "10.43.0.0/16",
		ClusterDomain:  "cluster.local",
		PauseImage:     "rancher/mirrored-pause:3.6",
	}
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		s, known := settings[k]
		if !known {
			return nil, fmt.Errorf("unknown setting %q; this build knows %s", k, strings.Join(knownKeys(role), ", "))
		}
		if !slices.Contains(strings.Fields(s.roles), role) {
			return nil, fmt.Errorf("setting %q is not one of the %s's", k, role)
		}
		if err := s.store(c, values[k]); err != nil {
			return nil, fmt.Errorf("setting %q %w", k, err)
		}
	}
	return c, c.check(role)
}

func knownKeys(role string) []string {
	var out []string
	for k, s := range settings {
		if slices.Contains(strings.Fields(s.roles), role) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}

func (c *Config) check(role string) error {
	for _, arg := range slices.Concat(c.KubeletArgs, c.KubeProxyArgs, c.APIServerArgs, c.ControllerManagerArgs, c.SchedulerArgs) {
		if k, _, ok := strings.Cut(arg, "="); !ok || k == "" || strings.HasPrefix(k, "-") {
			return fmt.Errorf("component argument %q must have the form name=value, without leading dashes", arg)
		}
	}
	if c.NodeIP != "" && net.ParseIP(c.NodeIP) == nil {
		return fmt.Errorf("node-ip %q is not an address", c.NodeIP)
	}
	if c.Token != "" {
		if _, err := parseToken(c.Token); err != nil {
			return fmt.Errorf("token: %w", err)
		}
	}
	if role == roleAgent {
		if c.Token == "" {
			return errors.New("token is required on an agent")
		}
		u, err := url.Parse(c.ServerURL)
		if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") {
			return fmt.Errorf("server must be given as https://ADDRESS:6443, not %q", c.ServerURL)
		}
		return nil
	}
	return c.checkServer()
}

func (c *Config) checkServer() error {
	if c.AgentToken != "" {
		if _, err := parseToken(c.AgentToken); err != nil {
			return fmt.Errorf("agent-token: %w", err)
		}
	}
	u, err := url.Parse(c.DatastoreEndpoint)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return errors.New("datastore-endpoint is required, and this build knows only postgres://USER@HOST:5432/DATABASE")
	}
	if c.FlannelBackend != "vxlan" && c.FlannelBackend != "host-gw" {
		return fmt.Errorf("flannel-backend %q is not in this build; it has vxlan and host-gw", c.FlannelBackend)
	}
	for name, cidr := range map[string]string{"cluster-cidr": c.ClusterCIDR, "service-cidr": c.ServiceCIDR} {
		if ip, _, err := net.ParseCIDR(cidr); err != nil || ip.To4() == nil {
			return fmt.Errorf("%s %q is not an IPv4 network such as 10.42.0.0/16", name, cidr)
		}
	}
	packaged := []string{"coredns", "local-storage", "metrics-server", "servicelb", "traefik", "runtimes"}
	for _, d := range c.Disable {
		if !slices.Contains(packaged, d) {
			return fmt.Errorf("disable: %q is not a packaged component; K3s has %s", d, strings.Join(packaged, ", "))
		}
	}
	for _, d := range []string{"servicelb", "traefik"} {
		if !slices.Contains(c.Disable, d) {
			return fmt.Errorf("this build has no %[1]s: list %[1]s under disable", d)
		}
	}
	if c.ClusterDNS == "" {
		if c.ClusterDNS, err = addressIn(c.ServiceCIDR, 10); err != nil {
			return err
		}
	}
	return nil
}

// fillFromMachine sets what the file leaves out from the machine itself.
func (c *Config) fillFromMachine() error {
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node-name is not set and this machine has no host name: %w", err)
		}
		c.NodeName = name
	}
	c.NodeName = strings.ToLower(c.NodeName)
	if c.NodeIP == "" {
		ip, err := utilnet.ChooseHostInterface()
		if err != nil {
			return fmt.Errorf("node-ip is not set and no address could be found by the default route: %w", err)
		}
		c.NodeIP = ip.String()
	}
	return nil
}

// addressIn returns the n-th address of a network.
func addressIn(cidr string, n byte) (string, error) {
	_, network, err := net.ParseCIDR(cidr)
	if err != nil {
		return "", err
	}
	ip := slices.Clone(network.IP)
	ip[len(ip)-1] += n
	return ip.String(), nil
}

// componentArgs joins a component's own flags with the user's "name=value" ones: the user's replace ours.
func componentArgs(ours map[string]string, users []string) []string {
	merged := map[string][]string{}
	for k, v := range ours {
		merged[k] = []string{v}
	}
	replaced := map[string]bool{}
	for _, arg := range users {
		k, v, _ := strings.Cut(arg, "=")
		if !replaced[k] {
			merged[k], replaced[k] = nil, true
		}
		merged[k] = append(merged[k], v)
	}
	var out []string
	for k, vs := range merged {
		for _, v := range vs {
			out = append(out, "--"+k+"="+v)
		}
	}
	sort.Strings(out)
	return out
}
