package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
)

// flanneld runs flannel's packages as flannel's own main does, with the two backends of this build.
func flanneld(args []string) error {
	fs := flag.NewFlagSet("flanneld", flag.ContinueOnError)
	kubeconfig := fs.String("kubeconfig-file", "", "kubeconfig of the node's controller user")
	iface := fs.String("iface", "", "address or name of the interface between nodes")
	conf := fs.String("net-config-path", flannelConf, "flannel's network configuration")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	sm, err := kube.NewSubnetManager(ctx, "", *kubeconfig, "flannel.alpha.coreos.com", *conf, false)
	if err != nil {
		return fmt.Errorf("subnet manager: %w", err)
	}
	cfg, err := sm.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	stack, err := ipmatch.GetIPFamily(cfg.EnableIPv4, cfg.EnableIPv6)
	if err != nil {
		return fmt.Errorf("address family: %w", err)
	}
	ext, err := ipmatch.LookupExtIface(*iface, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return fmt.Errorf("interface %s: %w", *iface, err)
	}
	be, err := backend.NewManager(ctx, sm, ext).GetBackend(cfg.BackendType)
	if err != nil {
		return fmt.Errorf("backend %s: %w", cfg.BackendType, err)
	}
	var wg sync.WaitGroup
	network, err := be.RegisterNetwork(ctx, &wg, cfg)
	if err != nil {
		return fmt.Errorf("registering the network: %w", err)
	}
	tm := &iptables.IPTablesManager{}
	if err := tm.Init(ctx); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	lease := network.Lease()
	if err := tm.SetupAndEnsureMasqRules(ctx, cfg.Network, ip.IP4Net{}, ip.IP4Net{}, ip.IP6Net{}, ip.IP6Net{}, ip.IP6Net{}, lease, 60, false); err != nil {
		return fmt.Errorf("masquerade rules: %w", err)
	}
	tm.SetupAndEnsureForwardRules(ctx, cfg.Network, cfg.IPv6Network, 50)
	if err := sm.HandleSubnetFile(flannelSubnet, cfg, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	if err := sm.CompleteLease(ctx, lease, &wg); err != nil {
		return fmt.Errorf("completing the lease: %w", err)
	}
	fmt.Fprintf(os.Stderr, "running, backend %s, subnet %s\n", cfg.BackendType, lease.Subnet)
	network.Run(ctx)
	return nil
}

// flannelConfig is flannel's net-conf.json.
func flannelConfig(clusterCIDR, backendType string) ([]byte, error) {
	type object = map[string]any
	return json.Marshal(object{"Network": clusterCIDR, "EnableIPv4": true, "EnableIPv6": false, "Backend": object{"Type": backendType}})
}

// keepCNI writes the bridge configuration that flannel's own CNI plugin would delegate to, from the subnet
// file which flanneld leaves, and again whenever that file changes.
func keepCNI(ctx context.Context, report func(error)) {
	last := ""
	for {
		b, err := os.ReadFile(flannelSubnet)
		if err == nil && string(b) != last {
			conf, err := cniConfig(string(b))
			if err == nil {
				err = writeFile(cniConfDir+"/10-flannel.conflist", conf, 0o600)
			}
			if err != nil {
				report(fmt.Errorf("cannot configure the pod network: %w", err))
			} else {
				last = string(b)
			}
		}
		if pause(ctx.Done(), time.Second) {
			return
		}
	}
}

// cniConfig renders the CNI configuration for a node from flannel's subnet.env.
func cniConfig(subnetEnv string) ([]byte, error) {
	v := map[string]string{}
	for l := range strings.Lines(subnetEnv) {
		if k, x, ok := strings.Cut(strings.TrimSpace(l), "="); ok {
			v[k] = x
		}
	}
	_, subnet, err := net.ParseCIDR(v["FLANNEL_SUBNET"])
	if err != nil {
		return nil, fmt.Errorf("%s: FLANNEL_SUBNET: %w", flannelSubnet, err)
	}
	mtu := json.Number(v["FLANNEL_MTU"])
	if _, err := mtu.Int64(); err != nil {
		return nil, fmt.Errorf("%s: FLANNEL_MTU: %w", flannelSubnet, err)
	}
	type object = map[string]any
	return json.MarshalIndent(object{
		"name": "cbr0", "cniVersion": "1.0.0",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "forceAddress": true, "hairpinMode": true,
				"ipMasq": false, "mtu": mtu,
				"ipam": object{
					"type": "host-local", "ranges": [][]object{{{"subnet": subnet.String()}}},
					"routes": []object{{"dst": v["FLANNEL_NETWORK"]}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
}
