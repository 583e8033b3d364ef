package main

import (
	"strings"
	"testing"
)

func TestCNIConfig(t *testing.T) {
	conf, err := cniConfig("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"subnet": "10.42.2.0/24"`, `"mtu": 1450`, `"dst": "10.42.0.0/16"`} {
		if !strings.Contains(string(conf), want) {
			t.Errorf("lacks %s:\n%s", want, conf)
		}
	}
	for _, bad := range []string{"", "FLANNEL_SUBNET=10.42.2.1/24\n", "FLANNEL_SUBNET=x\nFLANNEL_MTU=1450\n"} {
		if _, err := cniConfig(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestUsableResolvConf(t *testing.T) {
	for text, want := range map[string]bool{
		"search x\nnameserver 10.0.145.1\n":              true,
		"nameserver 127.0.0.53\n":                        false,
		"nameserver 127.0.0.53\nnameserver 10.0.145.1\n": true,
		"": false,
	} {
		if got := usableResolvConf(text); got != want {
			t.Errorf("%q: got %t", text, got)
		}
	}
}
