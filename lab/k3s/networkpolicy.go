package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/cloudnativelabs/kube-router/v2/pkg/svcip"
	"github.com/cloudnativelabs/kube-router/v2/pkg/utils"
	"github.com/coreos/go-iptables/iptables"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// kubeRouter runs kube-router's network policy controller, the part of kube-router that K3s has, set as K3s sets it.
func kubeRouter(args []string) error {
	fs := flag.NewFlagSet("kube-router", flag.ContinueOnError)
	kubeconfig := fs.String("kubeconfig", "", "kubeconfig of the node's controller user")
	node := fs.String("hostname-override", "", "name of this node")
	services := fs.String("service-cluster-ip-range", "", "network of the services")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	sets, err := workingIPSet()
	if err != nil {
		// K3s goes on without policies as well: whoever needs them has to look.
		slog.Warn("no network policy is enforced on this node: ipset does not work", "error", err)
		<-ctx.Done()
		return nil
	}
	tables, err := iptables.NewWithProtocol(iptables.ProtocolIPv4)
	if err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	ranges, err := svcip.NewValidator(svcip.Config{ClusterIPCIDRs: []string{*services}, EnableIPv4: true})
	if err != nil {
		return fmt.Errorf("network of the services: %w", err)
	}
	client, err := clientFrom(*kubeconfig, 0)
	if err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	pods := shared.Core().V1().Pods().Informer()
	namespaces := shared.Core().V1().Namespaces().Informer()
	policies := shared.Networking().V1().NetworkPolicies().Informer()
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())

	config := options.NewKubeRouterConfig()
	config.EnableIPv4 = true
	config.HostnameOverride = *node
	config.NodePortRange = strings.ReplaceAll(nodePorts, "-", ":")
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, nil,
		map[corev1.IPFamily]utils.IPTablesHandler{corev1.IPv4Protocol: tables},
		map[corev1.IPFamily]utils.IPSetHandler{corev1.IPv4Protocol: sets}, ranges)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, namespaces: controller.NamespaceEventHandler, policies: controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	heartbeats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for range heartbeats { // the supervisor sees whether this process lives
		}
	}()
	var running sync.WaitGroup
	running.Add(1)
	controller.Run(heartbeats, ctx.Done(), &running)
	running.Wait()
	return nil
}

// workingIPSet returns a handler for ipset when the program is there and the kernel answers it.
func workingIPSet() (*utils.IPSet, error) {
	sets, err := utils.NewIPSet(false)
	if err != nil {
		return nil, err
	}
	return sets, sets.Save()
}

// hasAddress tells whether the cluster knows the node's address, by which its pods are told from those of other nodes.
func (n *node) hasAddress(ctx context.Context) bool {
	o, err := n.client.CoreV1().Nodes().Get(ctx, n.config.NodeName, metav1.GetOptions{})
	if err != nil {
		return false
	}
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return true
		}
	}
	return false
}
