// Command k3s is the lab's stand-in for the K3s release: upstream Kubernetes, kine, flannel and kube-router's network
// policies in one binary that takes the same commands, configuration file and tokens, and keeps its files in the same places.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	_ "time/tzdata"

	kineapp "github.com/k3s-io/kine/pkg/app"
	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/klog/v2"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Set by build.sh.
var (
	version = "v1.36.3+k3s1"
	commit  = "unknown"
)

// components are what this binary becomes by its argv[0]; kubectl is also a command.
var components = map[string]func() int{
	"kube-apiserver":          func() int { return runCommand(apiServerCommand()) },
	"kube-controller-manager": func() int { return runCommand(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return runCommand(scheduler.NewSchedulerCommand()) },
	"kubelet":                 func() int { return runCommand(kubelet.NewKubeletCommand(context.Background())) },
	"kube-proxy":              func() int { return runCommand(kubeproxy.NewProxyCommand()) },
	"kubectl":                 runKubectl,
	"kine": func() int {
		err := kineapp.New().Run(os.Args)
		return report("", err)
	},
	"flanneld":    func() int { return report("", flanneld(os.Args[1:])) },
	"kube-router": func() int { return report("", kubeRouter(os.Args[1:])) },
}

const usage = `usage: k3s COMMAND

  server     run a server: control plane and node; settings from ` + configFile + `
  agent      run an agent: a node only; settings from ` + configFile + `
  kubectl    run kubectl, by default with ` + kubeconfigFile + `
  ctr        run containerd's ctr on this machine's containers
  --version  print the version
`

func main() {
	if run, ok := components[filepath.Base(os.Args[0])]; ok {
		os.Exit(run())
	}
	os.Exit(command(os.Args[1:]))
}

func command(args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	switch args[0] {
	case roleServer, roleAgent:
		if len(args) > 1 {
			return report("k3s: ", fmt.Errorf("k3s %s takes its settings from %s only, not %q", args[0], configFile, args[1]))
		}
		return report("k3s: fatal: ", run(args[0]))
	case "kubectl":
		os.Args = args
		return runKubectl()
	case "ctr":
		return report("k3s: ", execCtr(args[1:]))
	case "--version", "-v", "version":
		fmt.Printf("k3s version %s (%s)\ngo version %s\n", version, commit, runtime.Version())
		return 0
	case "--help", "-h", "help":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprintf(os.Stderr, "k3s: %q is not a command of this build\n%s", args[0], usage)
	return 2
}

func report(prefix string, err error) int {
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s%v\n", prefix, err)
	return 1
}

func runCommand(c *cobra.Command) int { return cli.Run(c) }

func runKubectl() int {
	if os.Getenv("KUBECONFIG") == "" {
		if _, err := os.Stat(kubeconfigFile); err == nil {
			if err := os.Setenv("KUBECONFIG", kubeconfigFile); err != nil {
				return report("k3s: ", err)
			}
		}
	}
	logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)) //nolint:errcheck // a bad -v is reported by the flag's own parsing
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
	return 0
}

// execCtr becomes the packaged ctr, pointed at k3s's containerd and Kubernetes' images.
func execCtr(args []string) error {
	bin, err := unpackRuntime()
	if err != nil {
		return err
	}
	env := os.Environ()
	for k, v := range map[string]string{"CONTAINERD_ADDRESS": containerdSock, "CONTAINERD_NAMESPACE": "k8s.io"} {
		if os.Getenv(k) == "" {
			env = append(env, k+"="+v)
		}
	}
	ctr := filepath.Join(bin, "ctr")
	return syscall.Exec(ctr, append([]string{"ctr"}, args...), env)
}

// run is the life of a server or agent.
func run(role string) error {
	setLog()
	if os.Geteuid() != 0 {
		return fmt.Errorf("k3s %s must run as root", role)
	}
	c, err := readConfig(role)
	if err != nil {
		return err
	}
	slog.Info("starting k3s "+role, "version", version, "node", c.NodeName, "address", c.NodeIP)
	stopped, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ctx, fail := context.WithCancelCause(stopped)
	s := newSupervisor(ctx, fail)
	start := runServer
	if role == roleAgent {
		start = runAgent
	}
	go func() {
		if err := start(ctx, s, c); err != nil {
			fail(err)
		}
	}()
	s.wait()
	if stopped.Err() != nil {
		slog.Info("stopped; pods go on running")
		return nil
	}
	return context.Cause(ctx)
}

// setLog makes our own lines look like a component's: "k3s: level=INFO msg=...". The journal adds the time.
func setLog() {
	slog.SetDefault(slog.New(slog.NewTextHandler(prefixWriter("k3s: "), &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	klog.SetSlogLogger(slog.Default())
}

type prefixWriter string

// Write prints one line at a time: each of the loggers writes whole lines.
func (p prefixWriter) Write(b []byte) (int, error) {
	logMutex.Lock()
	defer logMutex.Unlock()
	for l := range strings.Lines(string(b)) {
		if _, err := fmt.Fprint(os.Stderr, string(p), strings.TrimRight(l, "\n"), "\n"); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
