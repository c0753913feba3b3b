package main

import (
	"maps"
	"net/netip"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestOtherNodes(t *testing.T) {
	node := func(name, pods string, addresses ...v1.NodeAddress) *v1.Node {
		return &v1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.NodeSpec{PodCIDR: pods},
			Status: v1.NodeStatus{Addresses: addresses},
		}
	}
	at := func(kind v1.NodeAddressType, address string) v1.NodeAddress {
		return v1.NodeAddress{Type: kind, Address: address}
	}
	var others otherNodes
	if others.has(netip.MustParseAddr("10.107.0.6")) {
		t.Error("nothing is known yet")
	}
	got := others.find("own", []*v1.Node{
		node("own", "10.42.0.0/24", at(v1.NodeInternalIP, "10.107.0.2")),
		node("other", "10.42.1.0/24", at(v1.NodeHostName, "other"), at(v1.NodeInternalIP, "10.107.0.6")),
		node("without pods yet", "", at(v1.NodeInternalIP, "10.107.0.10")),
		node("without an address yet", "10.42.3.0/24"),
	})
	want := map[netip.Prefix]netip.Addr{netip.MustParsePrefix("10.42.1.0/24"): netip.MustParseAddr("10.107.0.6")}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for address, want := range map[string]bool{"10.107.0.2": false, "10.107.0.6": true, "10.107.0.10": true} {
		if others.has(netip.MustParseAddr(address)) != want {
			t.Errorf("%s is another node's: want %t", address, want)
		}
	}
}
