package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// runAgent is `k3s agent`: it joins through a balancer of its own and runs the node's components.
func runAgent(ctx context.Context, s *supervisor, c *Config) error {
	bin, err := unpackRuntime()
	if err != nil {
		return err
	}
	t, err := parseToken(c.Token)
	if err != nil {
		return err
	}
	if t.caHash == "" {
		slog.Warn("the token does not include a CA hash: use the full token from a server's node-token file to check the cluster's CA")
	}
	u, err := url.Parse(c.ServerURL)
	if err != nil {
		return err
	}
	fallback := u.Host
	if u.Port() == "" {
		fallback = net.JoinHostPort(u.Hostname(), "443")
	}
	b := newBalancer(fallback)
	go func() {
		if err := b.serve(); err != nil {
			s.fail(fmt.Errorf("the API balancer on %s: %w", balancerListen, err))
		}
	}()
	n := &node{config: c, bin: bin, api: "https://" + balancerListen, token: t}
	if err := n.start(ctx, s); err != nil {
		return err
	}
	go followServers(ctx, b, n.client, c.NodeName)
	if err := n.waitRegistered(ctx); err != nil {
		return err
	}
	slog.Info("k3s agent is up and running", "node", c.NodeName)
	notifyReady()
	return nil
}

// followServers keeps the balancer's list the cluster's; each node begins with another server.
func followServers(ctx context.Context, b *balancer, client kubernetes.Interface, nodeName string) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(nodeName))
	for {
		list, err := apiServers(ctx, client)
		if err == nil && len(list) > 0 {
			i := int(h.Sum32() % uint32(len(list)))
			b.set(slices.Concat(list[i:], list[:i]))
		}
		if pause(ctx.Done(), 5*time.Second) {
			return
		}
	}
}

// node is the part of a machine that runs pods: servers have it too.
type node struct {
	config *Config
	bin    string // the container runtime's programs
	api    string // URL of the API as this machine reaches it
	token  token

	settings *joinSettings
	client   *kubernetes.Clientset // as system:k3s-controller
}

func (n *node) start(ctx context.Context, s *supervisor) error {
	if err := n.prepare(); err != nil {
		return err
	}
	s.start(component{name: "containerd", exe: filepath.Join(n.bin, "containerd"), args: []string{"--config", containerdConf},
		env: []string{"PATH=" + n.bin + ":" + os.Getenv("PATH")}, last: true})
	var err error
	if n.settings, err = joinCluster(ctx, n.api, n.token, n.config.NodeName, n.config.NodeIP); err != nil {
		return err
	}
	if err := n.writeFiles(); err != nil {
		return err
	}
	if n.client, err = clientFrom(n.kubeconfig("k3scontroller"), 10*time.Second); err != nil {
		return err
	}
	s.start(component{name: "kubelet", args: n.kubeletArgs(), ready: containerdUp, fatal: true})
	s.start(component{name: "kube-proxy", args: n.kubeProxyArgs()})
	s.start(component{name: "flanneld", ready: n.hasPodNetwork, env: []string{"NODE_NAME=" + n.config.NodeName},
		args: []string{"--kubeconfig-file=" + n.kubeconfig("k3scontroller"), "--iface=" + n.config.NodeIP, "--net-config-path=" + flannelConf}})
	if !n.settings.DisableNetworkPolicy {
		s.start(component{name: "kube-router", ready: n.hasAddress, args: n.kubeRouterArgs()})
	}
	go keepCNI(ctx, s.fail)
	go newProvisioner(n.client, n.config.NodeName).run(ctx)
	return nil
}

func (n *node) kubeconfig(name string) string { return filepath.Join(agentDir, name+".kubeconfig") }

// prepare makes what containerd needs, before the cluster is known.
func (n *node) prepare() error {
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                 "1",
		"/proc/sys/net/bridge/bridge-nf-call-iptables":  "1",
		"/proc/sys/net/bridge/bridge-nf-call-ip6tables": "1",
	} {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			slog.Warn("failed to set sysctl", "file", path, "error", err)
		}
	}
	for _, dir := range []string{agentDir, kubeletConfDir, cniConfDir, containerdRoot, containerdState, storageDir, filepath.Dir(flannelSubnet)} {
		mode := os.FileMode(0o755)
		if dir == containerdState || dir == containerdRoot {
			mode = 0o711
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	if err := writeRegistries(); err != nil {
		return err
	}
	return writeFile(containerdConf, []byte(containerdConfig(n.bin, n.config.PauseImage)), 0o600)
}

// writeFiles lays down the configuration that needs the cluster's settings.
func (n *node) writeFiles() error {
	ca := filepath.Join(agentDir, "server-ca.crt")
	for name, pair := range map[string]string{"kubelet": "client-kubelet", "kubeproxy": "client-kube-proxy", "k3scontroller": "client-k3s-controller"} {
		if err := writeKubeconfig(n.kubeconfig(name), n.api, ca, filepath.Join(agentDir, pair)); err != nil {
			return err
		}
	}
	resolv, err := resolvConf()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(kubeletConfDir, "00-k3s-defaults.conf"), []byte(kubeletConfig(n.settings, resolv)), 0o600); err != nil {
		return err
	}
	flannel, err := flannelConfig(n.settings.ClusterCIDR, n.settings.FlannelBackend)
	if err != nil {
		return err
	}
	return writeFile(flannelConf, flannel, 0o600)
}

func containerdConfig(bin, pauseImage string) string {
	return fmt.Sprintf(`# Written by k3s at every start.
version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

# Its ordinary lines would drown everything else in the journal.
[debug]
  level = "warn"

[grpc]
  address = %[3]q

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %[4]q
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = %[5]q

[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  # A container host without CAP_SYS_RESOURCE cannot lower oom_score_adj.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = %[6]q
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[7]q]
    conf_dir = %[8]q
`, containerdRoot, containerdState, containerdSock, pauseImage, registryHosts, filepath.Join(bin, "runc"), bin, cniConfDir)
}

func kubeletConfig(s *joinSettings, resolv string) string {
	return fmt.Sprintf(`# Written by k3s at every start; settings of your own go into a later file beside it.
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
containerRuntimeEndpoint: unix://%[1]s
authentication: {anonymous: {enabled: false}, webhook: {enabled: true, cacheTTL: 2m0s}, x509: {clientCAFile: %[2]s/client-ca.crt}}
authorization: {mode: Webhook}
clusterDNS: [%[3]q]
clusterDomain: %[4]q
resolvConf: %[5]q
tlsCertFile: %[2]s/serving-kubelet.crt
tlsPrivateKeyFile: %[2]s/serving-kubelet.key
serializeImagePulls: false
evictionHard: {imagefs.available: 2%%, nodefs.available: 2%%}
evictionMinimumReclaim: {imagefs.available: 2%%, nodefs.available: 2%%}
`, containerdSock, agentDir, s.ClusterDNS, s.ClusterDomain, resolv)
}

func (n *node) kubeletArgs() []string {
	ours := map[string]string{
		"config-dir":        kubeletConfDir,
		"kubeconfig":        n.kubeconfig("kubelet"),
		"hostname-override": n.config.NodeName,
		"node-ip":           n.config.NodeIP,
	}
	if len(n.config.NodeLabels) > 0 {
		ours["node-labels"] = strings.Join(n.config.NodeLabels, ",")
	}
	if len(n.config.NodeTaints) > 0 {
		ours["register-with-taints"] = strings.Join(n.config.NodeTaints, ",")
	}
	return componentArgs(ours, n.config.KubeletArgs)
}

func (n *node) kubeProxyArgs() []string {
	return componentArgs(map[string]string{
		"kubeconfig":                        n.kubeconfig("kubeproxy"),
		"hostname-override":                 n.config.NodeName,
		"cluster-cidr":                      n.settings.ClusterCIDR,
		"proxy-mode":                        "iptables",
		"healthz-bind-address":              "127.0.0.1",
		"conntrack-max-per-core":            "0",
		"conntrack-tcp-timeout-established": "0s",
		"conntrack-tcp-timeout-close-wait":  "0s",
	}, n.config.KubeProxyArgs)
}

func (n *node) kubeRouterArgs() []string {
	return componentArgs(map[string]string{
		"kubeconfig":               n.kubeconfig("k3scontroller"),
		"hostname-override":        n.config.NodeName,
		"service-cluster-ip-range": n.settings.ServiceCIDR,
	}, nil)
}

func containerdUp(context.Context) bool { return unixUp(containerdSock) }

// kubeletUp tells whether the kubelet accepts connections, which it does only once nothing keeps it from running.
func kubeletUp() bool {
	c, err := net.DialTimeout("tcp", "127.0.0.1:10250", time.Second)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// unixUp tells whether a socket accepts connections.
func unixUp(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// hasPodNetwork tells whether the node has its share of the pod network, without which flannel gives up.
func (n *node) hasPodNetwork(ctx context.Context) bool {
	o, err := n.client.CoreV1().Nodes().Get(ctx, n.config.NodeName, metav1.GetOptions{})
	return err == nil && o.Spec.PodCIDR != ""
}

// waitRegistered returns when the kubelet serves and the cluster knows the node.
func (n *node) waitRegistered(ctx context.Context) error {
	for {
		if !kubeletUp() {
			if pause(ctx.Done(), 300*time.Millisecond) {
				return context.Cause(ctx)
			}
			continue
		}
		if _, err := n.client.CoreV1().Nodes().Get(ctx, n.config.NodeName, metav1.GetOptions{}); err == nil {
			return nil
		}
		if pause(ctx.Done(), 300*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// resolvConf returns the file that pods' name resolution starts from: the machine's, unless that names only
// servers on the machine itself, which no pod can reach; then one of our own, as K3s does.
func resolvConf() (string, error) {
	const machine = "/etc/resolv.conf"
	b, err := os.ReadFile(machine)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if usableResolvConf(string(b)) {
		return machine, nil
	}
	slog.Warn("no nameserver in /etc/resolv.conf that pods could reach: they get 8.8.8.8")
	return ownResolvConf, writeFile(ownResolvConf, []byte("nameserver 8.8.8.8\n"), 0o644)
}

func usableResolvConf(text string) bool {
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) > 1 && f[0] == "nameserver" {
			if ip := net.ParseIP(f[1]); ip != nil && ip.IsGlobalUnicast() {
				return true
			}
		}
	}
	return false
}
