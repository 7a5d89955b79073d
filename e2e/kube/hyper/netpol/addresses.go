package netpol

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// results is where libcni keeps what the network plugins of each sandbox answered.
const results = "/var/lib/cni/results"

// network is the name of the pods' network in the plugins' configuration.
const network = "e2e"

// annotation carries a pod's address until its kubelet tells it.
const annotation = "e2e.local/address"

type result struct {
	Args   [][2]string `json:"cniArgs"`
	Answer struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	} `json:"result"`
}

// announce annotates every pod of this node with its address as soon as the plugins have given it
// one. Network plugins that enforce policies know addresses from then on; a kubelet tells them to
// the API server up to a second later.
func announce(cs kubernetes.Interface) error {
	if err := os.MkdirAll(results, 0o700); err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	if err := watcher.Add(results); err != nil {
		return err
	}
	told := map[string]bool{}
	tell := func(path string) {
		text, err := os.ReadFile(path)
		var it result
		// Of a file that is half written more is heard.
		if told[path] || err != nil || json.Unmarshal(text, &it) != nil || len(it.Answer.IPs) == 0 {
			return
		}
		told[path] = true
		go it.annotate(cs)
	}
	prefix := filepath.Join(results, network+"-")
	there, err := filepath.Glob(prefix + "*")
	if err != nil {
		return err
	}
	for _, path := range there {
		tell(path)
	}
	for {
		select {
		case err := <-watcher.Errors:
			return err
		case event := <-watcher.Events:
			switch {
			case !strings.HasPrefix(event.Name, prefix):
			case event.Has(fsnotify.Remove):
				delete(told, event.Name)
			default:
				tell(event.Name)
			}
		}
	}
}

func (it *result) annotate(cs kubernetes.Interface) {
	args := map[string]string{}
	for _, pair := range it.Args {
		args[pair[0]] = pair[1]
	}
	address, _, _ := strings.Cut(it.Answer.IPs[0].Address, "/")
	// A uid that is another's is refused.
	metadata := map[string]any{"uid": args["K8S_POD_UID"], "annotations": map[string]string{annotation: address}}
	patch, _ := json.Marshal(map[string]any{"metadata": metadata})
	pods := cs.CoreV1().Pods(args["K8S_POD_NAMESPACE"])
	if _, err := pods.Patch(context.Background(), args["K8S_POD_NAME"], types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		fmt.Fprintln(os.Stderr, "netpol: announce:", err)
	}
}

// address is where a pod is, or empty when nobody knows yet.
func address(p *corev1.Pod) string {
	if p.Status.PodIP != "" {
		return p.Status.PodIP
	}
	return p.Annotations[annotation]
}
