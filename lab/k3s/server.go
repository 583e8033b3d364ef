package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

var adminKubeconfig = filepath.Join(serverCred, "admin.kubeconfig")

func tlsFile(name string) string { return filepath.Join(serverTLS, name) }

// runServer is `k3s server`: the datastore's adapter, the control plane, the add-ons, and a node as well.
func runServer(ctx context.Context, s *supervisor, c *Config) error {
	bin, err := unpackRuntime()
	if err != nil {
		return err
	}
	for _, dir := range []string{serverDir, serverTLS, serverCred} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	secret, err := serverSecret(c)
	if err != nil {
		return err
	}
	if err := os.Remove(kineSocket); err != nil && !errors.Is(err, os.ErrNotExist) { // left by an earlier run
		return err
	}
	s.start(kine(c))
	if err := waitDatastore(ctx); err != nil {
		return err
	}
	data, err := loadBootstrapData(ctx, secret)
	if err != nil {
		return err
	}
	if err := data.write(); err != nil {
		return err
	}
	agents := secret
	if c.AgentToken != "" {
		t, err := parseToken(c.AgentToken)
		if err != nil {
			return err
		}
		agents = t.secret
	}
	if err := writeServerFiles(c, data, secret, agents); err != nil {
		return err
	}
	client, err := clientFrom(adminKubeconfig, 10*time.Second)
	if err != nil {
		return err
	}
	s.start(component{name: "kube-apiserver", args: apiServerArgs(c), ready: kineUp})
	if err := waitAPI(ctx, client); err != nil {
		return err
	}
	slog.Info("k3s is up and running")
	notifyReady()
	api := func(ctx context.Context) bool { return apiReady(ctx, client) }
	s.start(component{name: "kube-controller-manager", args: controllerManagerArgs(c), ready: api})
	s.start(component{name: "kube-scheduler", args: schedulerArgs(c), ready: api})
	if err := writeAddons(c); err != nil {
		return err
	}
	go keepAddons(ctx, client)
	go forgetRemovedNodes(ctx, client)

	n := &node{config: c, bin: bin, api: localAPI, token: token{user: userNode, secret: agents}}
	if err := n.start(ctx, s); err != nil {
		return err
	}
	if err := n.waitRegistered(ctx); err != nil {
		return err
	}
	return labelServer(ctx, client, c.NodeName)
}

// serverSecret is the configured token, or the one kept from an earlier start, or a new one.
func serverSecret(c *Config) (string, error) {
	text := c.Token
	if text == "" {
		b, err := os.ReadFile(serverToken)
		switch {
		case err == nil:
			text = string(b)
		case errors.Is(err, os.ErrNotExist):
			text = randomHex(16)
		default:
			return "", err
		}
	}
	t, err := parseToken(text)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	if t.user == userNode {
		return "", errors.New("token: a server needs the server token, not one that ends in ::node:SECRET")
	}
	return t.secret, nil
}

// kine translates the API server's etcd requests for PostgreSQL. The endpoint goes by its environment, which
// only root can read: it may hold a password.
func kine(c *Config) component {
	return component{
		name: "kine", last: true,
		env: []string{"KINE_ENDPOINT=" + c.DatastoreEndpoint},
		args: []string{
			"--listen-address=unix://" + kineSocket, "--metrics-bind-address=0",
			"--ca-file=" + c.DatastoreCAFile, "--cert-file=" + c.DatastoreCertFile, "--key-file=" + c.DatastoreKeyFile,
		},
	}
}

// kineUp tells whether kine accepts connections, which it does once the datastore has answered it.
func kineUp(context.Context) bool { return unixUp(kineSocket) }

func waitDatastore(ctx context.Context) error {
	quiet := newRepeatFilter(15 * time.Second)
	quiet.pass("") // a start takes a moment
	for !kineUp(ctx) {
		if quiet.pass("") {
			slog.Warn("the datastore does not answer yet, trying again; kine's lines say why")
		}
		if pause(ctx.Done(), 100*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// writeServerFiles lays down certificates, kubeconfigs and tokens; leaf certificates near their end are renewed.
func writeServerFiles(c *Config, data bootstrapData, secret, agents string) error {
	if err := ensureLeafs(c); err != nil {
		return err
	}
	ca := tlsFile("server-ca.crt")
	for _, k := range []string{"admin", "controller", "scheduler"} {
		if err := writeKubeconfig(filepath.Join(serverCred, k+".kubeconfig"), localAPI, ca, tlsFile("client-"+k)); err != nil {
			return err
		}
	}
	if err := writePortableKubeconfig(kubeconfigFile, localAPI, ca, tlsFile("client-admin"), c.KubeconfigMode); err != nil {
		return err
	}
	if err := writePasswords(secret, agents); err != nil {
		return err
	}
	settings, err := json.Marshal(joinSettings{
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, ClusterDNS: c.ClusterDNS, ClusterDomain: c.ClusterDomain,
		FlannelBackend: c.FlannelBackend, DisableNetworkPolicy: c.DisableNetworkPolicy,
	})
	if err != nil {
		return err
	}
	if err := writeFile(joinFile, settings, 0o600); err != nil {
		return err
	}
	caText := data["server-ca.crt"]
	if err := writeFile(serverToken, []byte(longToken(caText, userServer, secret)+"\n"), 0o600); err != nil {
		return err
	}
	// As in K3s, node-token leads to the server's token unless agents have one of their own.
	target := serverToken
	if c.AgentToken != "" {
		target = agentToken
		if err := writeFile(agentToken, []byte(longToken(caText, userNode, agents)+"\n"), 0o600); err != nil {
			return err
		}
	}
	if err := os.Remove(nodeToken); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, nodeToken)
}

func ensureLeafs(c *Config) error {
	service, err := addressIn(c.ServiceCIDR, 1)
	if err != nil {
		return err
	}
	client := x509.ExtKeyUsageClientAuth
	names := append([]string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.ClusterDomain,
		"localhost", "127.0.0.1", "::1", service, c.NodeName, c.NodeIP,
	}, c.TLSSANs...)
	wanted := map[string][]struct {
		file string
		leaf leaf
	}{
		"server-ca": {{"serving-kube-apiserver", leaf{commonName: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth, names: names}}},
		"client-ca": {
			{"client-admin", leaf{commonName: "system:admin", groups: []string{"system:masters"}, usage: client}},
			{"client-controller", leaf{commonName: "system:kube-controller-manager", usage: client}},
			{"client-scheduler", leaf{commonName: "system:kube-scheduler", usage: client}},
			{"client-kube-apiserver", leaf{commonName: "system:kube-apiserver", usage: client}},
		},
		"request-header-ca": {{"client-auth-proxy", leaf{commonName: "system:auth-proxy", usage: client}}},
	}
	for name, leafs := range wanted {
		a, err := readAuthority(name)
		if err != nil {
			return err
		}
		for _, l := range leafs {
			if err := a.ensure(tlsFile(l.file), l.leaf); err != nil {
				return err
			}
		}
	}
	return nil
}

func apiServerArgs(c *Config) []string {
	issuer := "https://kubernetes.default.svc." + c.ClusterDomain
	ours := map[string]string{
		"etcd-servers":                       "unix://" + kineSocket,
		"advertise-address":                  c.NodeIP,
		"secure-port":                        fmt.Sprint(apiPort),
		"service-cluster-ip-range":           c.ServiceCIDR,
		"service-node-port-range":            nodePorts,
		"allow-privileged":                   "true",
		"anonymous-auth":                     "false",
		"authorization-mode":                 "Node,RBAC",
		"enable-admission-plugins":           "NodeRestriction",
		"profiling":                          "false",
		"tls-cert-file":                      tlsFile("serving-kube-apiserver.crt"),
		"tls-private-key-file":               tlsFile("serving-kube-apiserver.key"),
		"client-ca-file":                     tlsFile("client-ca.crt"),
		"kubelet-certificate-authority":      tlsFile("server-ca.crt"),
		"kubelet-client-certificate":         tlsFile("client-kube-apiserver.crt"),
		"kubelet-client-key":                 tlsFile("client-kube-apiserver.key"),
		"kubelet-preferred-address-types":    "InternalIP,ExternalIP,Hostname",
		"requestheader-client-ca-file":       tlsFile("request-header-ca.crt"),
		"requestheader-allowed-names":        "system:auth-proxy",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-username-headers":     "X-Remote-User",
		"proxy-client-cert-file":             tlsFile("client-auth-proxy.crt"),
		"proxy-client-key-file":              tlsFile("client-auth-proxy.key"),
		"service-account-issuer":             issuer,
		"api-audiences":                      issuer + ",k3s",
		"service-account-key-file":           tlsFile(serviceKey),
		"service-account-signing-key-file":   tlsFile(serviceKey),
	}
	if c.SecretsEncryption {
		ours["encryption-provider-config"] = encryptionFile
	}
	return componentArgs(ours, c.APIServerArgs)
}

func controllerManagerArgs(c *Config) []string {
	kubeconfig := filepath.Join(serverCred, "controller.kubeconfig")
	ours := map[string]string{
		"kubeconfig":                       kubeconfig,
		"authentication-kubeconfig":        kubeconfig,
		"authorization-kubeconfig":         kubeconfig,
		"bind-address":                     "127.0.0.1",
		"allocate-node-cidrs":              "true",
		"cluster-cidr":                     c.ClusterCIDR,
		"service-cluster-ip-range":         c.ServiceCIDR,
		"service-account-private-key-file": tlsFile(serviceKey),
		"root-ca-file":                     tlsFile("server-ca.crt"),
		"use-service-account-credentials":  "true",
		"controllers":                      "*,tokencleaner,-service-lb-controller,-node-route-controller,-cloud-node-lifecycle-controller",
		"profiling":                        "false",
	}
	for kind, ca := range map[string]string{
		"kubelet-serving": "server-ca", "legacy-unknown": "server-ca",
		"kubelet-client": "client-ca", "kube-apiserver-client": "client-ca",
	} {
		ours["cluster-signing-"+kind+"-cert-file"] = tlsFile(ca + ".crt")
		ours["cluster-signing-"+kind+"-key-file"] = tlsFile(ca + ".key")
	}
	return componentArgs(ours, c.ControllerManagerArgs)
}

func schedulerArgs(c *Config) []string {
	kubeconfig := filepath.Join(serverCred, "scheduler.kubeconfig")
	return componentArgs(map[string]string{
		"kubeconfig":                kubeconfig,
		"authentication-kubeconfig": kubeconfig,
		"authorization-kubeconfig":  kubeconfig,
		"bind-address":              "127.0.0.1",
		"profiling":                 "false",
	}, c.SchedulerArgs)
}

func apiReady(ctx context.Context, client kubernetes.Interface) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err == nil
}

func waitAPI(ctx context.Context, client kubernetes.Interface) error {
	for !apiReady(ctx, client) {
		if pause(ctx.Done(), 200*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// labelServer marks the node as one of the control plane, which a kubelet may not do for itself.
func labelServer(ctx context.Context, client kubernetes.Interface, name string) error {
	patch := []byte(`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true"}}}`)
	for {
		_, err := client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if err == nil {
			return nil
		}
		if pause(ctx.Done(), time.Second) {
			return context.Cause(ctx)
		}
	}
}

// forgetRemovedNodes deletes the password of a node that is deleted, so that a new machine can take its name.
func forgetRemovedNodes(ctx context.Context, client kubernetes.Interface) {
	known := map[string]bool{}
	for {
		if list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err == nil {
			now := make([]string, 0, len(list.Items))
			for _, o := range list.Items {
				now = append(now, o.Name)
				known[o.Name] = true
			}
			for name := range known {
				if slices.Contains(now, name) {
					continue
				}
				err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, nodePasswordName(name), metav1.DeleteOptions{})
				if err == nil {
					slog.Info("node was deleted, its password is forgotten", "node", name)
				}
				if err == nil || apierrors.IsNotFound(err) {
					delete(known, name)
				}
			}
		}
		if pause(ctx.Done(), 2*time.Second) {
			return
		}
	}
}
