package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	provisionerName       = "rancher.io/local-path"
	annotationNode        = "volume.kubernetes.io/selected-node"
	annotationProvisioner = "volume.kubernetes.io/storage-provisioner"
	annotationMadeBy      = "pv.kubernetes.io/provisioned-by"
)

// provisioner makes and removes the directories of local-path volumes on its own node, in place of the
// cluster-wide one of K3s, which starts a helper pod for each.
type provisioner struct {
	client  kubernetes.Interface
	node    string
	queue   workqueue.TypedRateLimitingInterface[string] // "claim NAMESPACE/NAME" or "volume NAME"
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
}

func newProvisioner(client kubernetes.Interface, node string) *provisioner {
	limit := workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second)
	return &provisioner{client: client, node: node, queue: workqueue.NewTypedRateLimitingQueue(limit)}
}

func (p *provisioner) run(ctx context.Context) {
	defer p.queue.ShutDown()
	// A new cluster grants the node's rights a few seconds after the node joins.
	for !p.permitted(ctx) {
		if pause(ctx.Done(), time.Second) {
			return
		}
	}
	factory := informers.NewSharedInformerFactory(p.client, 5*time.Minute)
	core := factory.Core().V1()
	p.claims, p.volumes = core.PersistentVolumeClaims().Lister(), core.PersistentVolumes().Lister()
	for kind, informer := range map[string]cache.SharedIndexInformer{"claim ": core.PersistentVolumeClaims().Informer(), "volume ": core.PersistentVolumes().Informer()} {
		add := func(o any) {
			if key, err := cache.MetaNamespaceKeyFunc(o); err == nil {
				p.queue.Add(kind + key)
			}
		}
		handler := cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}
		if _, err := informer.AddEventHandler(handler); err != nil {
			slog.Error("local-path volumes cannot be watched", "error", err)
			return
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	go func() {
		<-ctx.Done()
		p.queue.ShutDown()
	}()
	for {
		key, stop := p.queue.Get()
		if stop {
			return
		}
		if err := p.handle(ctx, key); err != nil {
			slog.Warn("local-path: trying again", "for", key, "error", err)
			p.queue.AddRateLimited(key)
		} else {
			p.queue.Forget(key)
		}
		p.queue.Done(key)
	}
}

func (p *provisioner) permitted(ctx context.Context) bool {
	one := metav1.ListOptions{Limit: 1}
	_, claims := p.client.CoreV1().PersistentVolumeClaims(metav1.NamespaceAll).List(ctx, one)
	_, volumes := p.client.CoreV1().PersistentVolumes().List(ctx, one)
	return claims == nil && volumes == nil
}

func (p *provisioner) handle(ctx context.Context, key string) error {
	kind, key, _ := strings.Cut(key, " ")
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	if kind == "volume" {
		v, err := p.volumes.Get(name)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return p.release(ctx, v)
	}
	c, err := p.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.provision(ctx, c)
}

// provision makes the directory and the volume for a claim whose pod was scheduled to this node.
func (p *provisioner) provision(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	if c.Annotations[annotationProvisioner] != provisionerName || c.Annotations[annotationNode] != p.node ||
		c.Spec.VolumeName != "" || c.Spec.StorageClassName == nil || c.DeletionTimestamp != nil {
		return nil
	}
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode != corev1.PersistentVolumeFilesystem {
		return errors.New("a local-path volume must have volumeMode Filesystem")
	}
	class, err := p.client.StorageV1().StorageClasses().Get(ctx, *c.Spec.StorageClassName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	name := "pvc-" + string(c.UID)
	path := filepath.Join(storageDir, strings.Join([]string{name, c.Namespace, c.Name}, "_"))
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // whatever the umask is
		return err
	}
	kind, reclaim := corev1.HostPathDirectoryOrCreate, corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{annotationMadeBy: provisionerName}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   c.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName:              class.Name,
			MountOptions:                  class.MountOptions,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{p.node}}},
			}}}},
			ClaimRef: &corev1.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name,
				UID: c.UID, ResourceVersion: c.ResourceVersion,
			},
		},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err == nil {
		slog.Info("local-path: volume made", "volume", name, "claim", c.Namespace+"/"+c.Name, "directory", path)
	}
	return err
}

// release removes the directory and the volume after its claim is gone, if the volume is to be deleted.
func (p *provisioner) release(ctx context.Context, v *corev1.PersistentVolume) error {
	if v.Annotations[annotationMadeBy] != provisionerName || v.Status.Phase != corev1.VolumeReleased ||
		v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || v.Spec.HostPath == nil || nodeOf(v) != p.node {
		return nil
	}
	path := filepath.Clean(v.Spec.HostPath.Path)
	if filepath.Dir(path) != storageDir {
		return fmt.Errorf("volume %s lies at %s, outside %s: not removed", v.Name, path, storageDir)
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	slog.Info("local-path: volume removed", "volume", v.Name, "directory", path)
	return nil
}

// nodeOf returns the node that a volume of ours is bound to.
func nodeOf(v *corev1.PersistentVolume) string {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, t := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range t.MatchExpressions {
			if e.Key == corev1.LabelHostname && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}
