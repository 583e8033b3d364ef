package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
)

// The join endpoints, named as in K3s.
const (
	pathPing       = "/ping"
	pathCACerts    = "/cacerts"
	pathJoin       = "/v1-k3s/"
	pathConfig     = pathJoin + "config"
	pathServers    = pathJoin + "apiservers"
	pathClientCA   = pathJoin + "client-ca.crt"
	pathServing    = pathJoin + "serving-kubelet.crt"
	pathKubelet    = pathJoin + "client-kubelet.crt"
	pathKubeProxy  = pathJoin + "client-kube-proxy.crt"
	pathController = pathJoin + "client-k3s-controller.crt"

	headerNode     = "K3s-Node-Name"
	headerPassword = "K3s-Node-Password"
	headerAddress  = "K3s-Node-Ip"

	userController = "system:k3s-controller"
	maxRequest     = 64 << 10
)

// joinSettings are what an agent learns from the server that it joins.
type joinSettings struct {
	ClusterCIDR          string `json:"clusterCIDR"`
	ServiceCIDR          string `json:"serviceCIDR"`
	ClusterDNS           string `json:"clusterDNS"`
	ClusterDomain        string `json:"clusterDomain"`
	FlannelBackend       string `json:"flannelBackend"`
	DisableNetworkPolicy bool   `json:"disableNetworkPolicy"`
}

// joinServer answers agents: it checks their secret and signs their certificates.
type joinServer struct {
	client    kubernetes.Interface
	passwords map[string][]string // user to the secrets it may show
	serverCA  []byte
	clientCA  []byte
	settings  []byte
	servers   *authority
	clients   *authority
	mux       *http.ServeMux
}

func newJoinServer(client kubernetes.Interface) (*joinServer, error) {
	j := &joinServer{client: client, mux: http.NewServeMux()}
	var err error
	if j.passwords, err = readPasswords(); err != nil {
		return nil, err
	}
	if j.serverCA, err = os.ReadFile(filepath.Join(serverTLS, "server-ca.crt")); err != nil {
		return nil, err
	}
	if j.clientCA, err = os.ReadFile(filepath.Join(serverTLS, "client-ca.crt")); err != nil {
		return nil, err
	}
	if j.settings, err = os.ReadFile(joinFile); err != nil {
		return nil, err
	}
	if j.servers, err = readAuthority("server-ca"); err != nil {
		return nil, err
	}
	if j.clients, err = readAuthority("client-ca"); err != nil {
		return nil, err
	}
	j.mux.HandleFunc("GET "+pathPing, func(w http.ResponseWriter, _ *http.Request) { reply(w, "text/plain", []byte("pong")) })
	j.mux.HandleFunc("GET "+pathCACerts, func(w http.ResponseWriter, _ *http.Request) { reply(w, "text/plain", j.serverCA) })
	j.mux.HandleFunc("GET "+pathClientCA, j.withSecret(func(w http.ResponseWriter, _ *http.Request) { reply(w, "text/plain", j.clientCA) }))
	j.mux.HandleFunc("GET "+pathConfig, j.withSecret(func(w http.ResponseWriter, _ *http.Request) { reply(w, "application/json", j.settings) }))
	j.mux.HandleFunc("GET "+pathServers, j.withSecret(j.listServers))
	j.mux.HandleFunc("POST "+pathKubeProxy, j.withSecret(j.signClient(leaf{commonName: "system:kube-proxy"})))
	j.mux.HandleFunc("POST "+pathController, j.withSecret(j.signClient(leaf{commonName: userController})))
	j.mux.HandleFunc("POST "+pathKubelet, j.withSecret(j.withNode(j.signKubelet)))
	j.mux.HandleFunc("POST "+pathServing, j.withSecret(j.withNode(j.signServing)))
	return j, nil
}

// before answers the join endpoints and hands everything else on.
func (j *joinServer) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := r.URL.Path
		if p == pathPing || p == pathCACerts || strings.HasPrefix(p, pathJoin) {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			j.mux.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	if _, err := w.Write(body); err != nil {
		slog.Debug("an agent went away before its answer", "error", err)
	}
}

// withSecret lets only requests with a valid token through.
func (j *joinServer) withSecret(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, secret, _ := r.BasicAuth()
		ok := 0
		for _, s := range j.passwords[user] {
			a, b := sha256.Sum256([]byte(s)), sha256.Sum256([]byte(secret))
			ok |= subtle.ConstantTimeCompare(a[:], b[:])
		}
		if ok != 1 {
			slog.Warn("a join was refused: token is not valid", "from", r.RemoteAddr, "node", nodeNameOf(r))
			http.Error(w, "token is not valid", http.StatusUnauthorized)
			return
		}
		next(w, r)
	}
}

// nodeNameOf is the name that the request claims, or nothing when that is not a name: it goes to the journal.
func nodeNameOf(r *http.Request) string {
	n := r.Header.Get(headerNode)
	if len(validation.IsDNS1123Subdomain(n)) > 0 {
		return ""
	}
	return n
}

// withNode lets only the machine through that first joined under its node's name.
func (j *joinServer) withNode(next func(w http.ResponseWriter, r *http.Request, node string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		node, password := nodeNameOf(r), r.Header.Get(headerPassword)
		if node == "" || password == "" {
			http.Error(w, "the request must name a node and its password", http.StatusBadRequest)
			return
		}
		switch err := ensureNodePassword(r.Context(), j.client, node, password); {
		case errors.Is(err, errNodePassword):
			slog.Warn("a join was refused", "node", node, "from", r.RemoteAddr, "error", err)
			http.Error(w, err.Error(), http.StatusForbidden)
		case err != nil:
			http.Error(w, "the node's password cannot be checked yet: "+err.Error(), http.StatusServiceUnavailable)
		default:
			next(w, r, node)
		}
	}
}

func (j *joinServer) listServers(w http.ResponseWriter, r *http.Request) {
	list, err := apiServers(r.Context(), j.client)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	body, err := json.Marshal(list)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, "application/json", body)
}

func (j *joinServer) signClient(l leaf) http.HandlerFunc {
	l.usage = x509.ExtKeyUsageClientAuth
	return func(w http.ResponseWriter, r *http.Request) { signTo(w, r, j.clients, l) }
}

func (j *joinServer) signKubelet(w http.ResponseWriter, r *http.Request, node string) {
	signTo(w, r, j.clients, leaf{commonName: "system:node:" + node, groups: []string{"system:nodes"}, usage: x509.ExtKeyUsageClientAuth})
}

func (j *joinServer) signServing(w http.ResponseWriter, r *http.Request, node string) {
	address := r.Header.Get(headerAddress)
	if net.ParseIP(address) == nil {
		http.Error(w, "the request must give the node's address", http.StatusBadRequest)
		return
	}
	signTo(w, r, j.servers, leaf{commonName: node, usage: x509.ExtKeyUsageServerAuth, names: []string{node, "localhost", "127.0.0.1", address}})
}

func signTo(w http.ResponseWriter, r *http.Request, a *authority, l leaf) {
	request, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	cert, err := a.signRequest(request, l)
	if err != nil {
		http.Error(w, "cannot sign: "+err.Error(), http.StatusBadRequest)
		return
	}
	reply(w, "application/x-pem-file", cert)
}

// apiServers lists the addresses of the cluster's API servers.
func apiServers(ctx context.Context, client kubernetes.Interface) ([]string, error) {
	found, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range found.Endpoints {
		for _, a := range e.Addresses {
			out = append(out, net.JoinHostPort(a, fmt.Sprint(apiPort)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Node passwords: the first machine to join under a name keeps it, as in K3s.

var errNodePassword = errors.New("node password rejected")

func nodePasswordName(node string) string { return node + ".node-password.k3s" }

func ensureNodePassword(ctx context.Context, client kubernetes.Interface, node, password string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	name := nodePasswordName(node)
	s, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		immutable := true
		s, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Immutable:  &immutable,
			Data:       map[string][]byte{"hash": hashNodePassword(randomHex(8), password)},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			s, err = secrets.Get(ctx, name, metav1.GetOptions{})
		}
	}
	if err != nil {
		return err
	}
	salt, _, _ := bytes.Cut(s.Data["hash"], []byte(":"))
	if subtle.ConstantTimeCompare(s.Data["hash"], hashNodePassword(string(salt), password)) != 1 {
		return fmt.Errorf("%w: another machine has joined as %s; duplicate hostname, or the machine was made anew: "+
			"then run kubectl delete node %s and kubectl -n kube-system delete secret %s", errNodePassword, node, node, name)
	}
	return nil
}

// hashNodePassword needs no slow hash: the password is 16 random bytes.
func hashNodePassword(salt, password string) []byte {
	h := sha256.Sum256([]byte(salt + ":" + password))
	return []byte(salt + ":" + hex.EncodeToString(h[:]))
}

// The file of join secrets: lines "SECRET,USER", written by the server for its API server.

func writePasswords(serverSecret, agentSecret string) error {
	lines := []string{serverSecret + "," + userServer, agentSecret + "," + userNode, serverSecret + "," + userNode}
	return writeFile(passwordFile, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func readPasswords() (map[string][]string, error) {
	b, err := os.ReadFile(passwordFile)
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for l := range strings.Lines(string(b)) {
		l = strings.TrimSpace(l)
		if i := strings.LastIndexByte(l, ','); i > 0 {
			out[l[i+1:]] = append(out[l[i+1:]], l[:i])
		}
	}
	return out, nil
}
