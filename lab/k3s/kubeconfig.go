package main

import (
	"fmt"
	"io/fs"
	"os"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// writeKubeconfig names the certificate files PAIR.crt and PAIR.key, so that renewing these is enough.
func writeKubeconfig(path, server, ca, pair string) error {
	c := newKubeconfig(server)
	c.Clusters["default"].CertificateAuthority = ca
	c.AuthInfos["default"].ClientCertificate = pair + ".crt"
	c.AuthInfos["default"].ClientKey = pair + ".key"
	return storeKubeconfig(path, c, 0o600)
}

// writePortableKubeconfig holds the certificates themselves, for use elsewhere.
func writePortableKubeconfig(path, server, ca, pair string, mode fs.FileMode) error {
	c := newKubeconfig(server)
	for file, into := range map[string]*[]byte{
		ca:            &c.Clusters["default"].CertificateAuthorityData,
		pair + ".crt": &c.AuthInfos["default"].ClientCertificateData,
		pair + ".key": &c.AuthInfos["default"].ClientKeyData,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		*into = b
	}
	return storeKubeconfig(path, c, mode)
}

func newKubeconfig(server string) *clientcmdapi.Config {
	return &clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"default": {Server: server}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"default": {}},
		Contexts:       map[string]*clientcmdapi.Context{"default": {Cluster: "default", AuthInfo: "default"}},
		CurrentContext: "default",
	}
}

func storeKubeconfig(path string, c *clientcmdapi.Config, mode fs.FileMode) error {
	b, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("cannot render %s: %w", path, err)
	}
	return writeFile(path, b, mode)
}

func clientFrom(kubeconfig string, timeout time.Duration) (*kubernetes.Clientset, error) {
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	c.Timeout = timeout
	return kubernetes.NewForConfig(c)
}
