package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

//go:embed manifests/*.yaml
var packagedManifests embed.FS

// addonState is the ConfigMap that remembers which content of each manifest was applied.
const addonState = "k3s-addons"

// writeAddons puts the packaged manifests where K3s has them; disabled ones are taken away.
func writeAddons(c *Config) error {
	entries, err := packagedManifests.ReadDir("manifests")
	if err != nil {
		return err
	}
	fill := strings.NewReplacer("%{CLUSTER_DNS}%", c.ClusterDNS, "%{CLUSTER_DOMAIN}%", c.ClusterDomain)
	for _, e := range entries {
		path := filepath.Join(serverManifests, e.Name())
		if slices.Contains(c.Disable, strings.TrimSuffix(e.Name(), ".yaml")) {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			continue
		}
		b, err := packagedManifests.ReadFile("manifests/" + e.Name())
		if err != nil {
			return err
		}
		if err := writeFile(path, []byte(fill.Replace(string(b))), 0o600); err != nil {
			return err
		}
	}
	if !slices.Contains(c.Disable, "metrics-server") {
		slog.Warn("this build has no metrics-server; list it under disable to silence this")
	}
	return nil
}

// keepAddons applies every manifest whose content is not the one applied last, in the order of their names: the
// rights that every node waits for come first.
func keepAddons(ctx context.Context, client kubernetes.Interface) {
	quiet := newRepeatFilter(30 * time.Second)
	for {
		if err := applyAddons(ctx, client); err != nil && ctx.Err() == nil && quiet.pass(err.Error()) {
			slog.Warn("an add-on could not be applied, trying again", "error", err)
		}
		if pause(ctx.Done(), 3*time.Second) {
			return
		}
	}
}

func applyAddons(ctx context.Context, client kubernetes.Interface) error {
	files, err := filepath.Glob(serverManifests + "/*.yaml")
	if err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	state, err := maps.Get(ctx, addonState, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		state, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: addonState}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	var failures []error
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		h := sha256.Sum256(b)
		name, hash := filepath.Base(f), hex.EncodeToString(h[:])
		if state.Data[name] == hash {
			continue
		}
		if err := applyManifest(ctx, f); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", name, err))
			continue
		}
		slog.Info("applied manifest", "file", f)
		if state.Data == nil {
			state.Data = map[string]string{}
		}
		state.Data[name] = hash
		state, err = maps.Update(ctx, state, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) { // another server was quicker: look again
			return errors.Join(failures...)
		}
		if err != nil {
			return errors.Join(append(failures, err)...)
		}
	}
	return errors.Join(failures...)
}

func applyManifest(ctx context.Context, file string) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "--kubeconfig="+adminKubeconfig,
		"apply", "--server-side", "--force-conflicts", "--field-manager=k3s", "-f", file)
	cmd.Args[0] = "kubectl"
	cmd.Env = childEnvironment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
