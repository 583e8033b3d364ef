package main

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	probeEvery   = time.Second
	dialTimeout  = time.Second
	probesToDown = 2
)

// balancer is an agent's way to the API: one local listener over all servers. It probes them, and cuts the
// connections to one that went away silently.
type balancer struct {
	fallback string // the address given in config.yaml, used when no known server answers

	mu      sync.Mutex
	servers []*apiServer
	quiet   *repeatFilter
}

type apiServer struct {
	address string
	gone    chan struct{}

	mu       sync.Mutex
	failures int
	conns    map[net.Conn]struct{}
}

// newBalancer starts with the servers remembered from last time.
func newBalancer(fallback string) *balancer {
	b := &balancer{fallback: fallback, quiet: newRepeatFilter(30 * time.Second)}
	saved, err := os.ReadFile(balancerFile)
	if err != nil {
		return b
	}
	var addresses []string
	if err := json.Unmarshal(saved, &addresses); err != nil {
		slog.Warn("the remembered list of servers is damaged and not used", "file", balancerFile, "error", err)
		return b
	}
	b.set(addresses)
	return b
}

// set makes the balancer use exactly these servers, and remembers them; an empty list changes nothing,
// because the cluster's list empties when every server is down.
func (b *balancer) set(addresses []string) {
	if len(addresses) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known := []string{}
	kept := []*apiServer{}
	for _, s := range b.servers {
		if slices.Contains(addresses, s.address) {
			kept = append(kept, s)
			known = append(known, s.address)
			continue
		}
		slog.Info("API server left the balancer", "server", s.address)
		close(s.gone)
		s.cut()
	}
	changed := len(kept) != len(b.servers)
	for _, a := range addresses {
		if slices.Contains(known, a) {
			continue
		}
		slog.Info("API server added to the balancer", "server", a)
		s := &apiServer{address: a, gone: make(chan struct{}), conns: map[net.Conn]struct{}{}}
		go s.probe()
		kept = append(kept, s)
		known = append(known, a)
		changed = true
	}
	b.servers = kept
	if !changed {
		return
	}
	body, err := json.Marshal(known)
	if err == nil {
		err = writeFile(balancerFile, body, 0o600)
	}
	if err != nil {
		slog.Warn("cannot remember the list of servers", "error", err)
	}
}

func (s *apiServer) up() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.failures < probesToDown }

func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

func (s *apiServer) probe() {
	for !pause(s.gone, probeEvery) {
		c, err := net.DialTimeout("tcp", s.address, dialTimeout)
		s.mu.Lock()
		before := s.failures
		if err != nil {
			s.failures++
		} else {
			s.failures = 0
		}
		after := s.failures
		s.mu.Unlock()
		if c != nil {
			_ = c.Close()
		}
		switch {
		case before < probesToDown && after == probesToDown:
			slog.Warn("API server does not answer, its connections are cut", "server", s.address)
			s.cut()
		case before >= probesToDown && after == 0:
			slog.Info("API server answers again", "server", s.address)
		}
	}
}

// serve listens and forwards; it returns only with an error.
func (b *balancer) serve() error {
	l, err := net.Listen("tcp", balancerListen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			slog.Warn("the balancer cannot accept a connection", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go b.forward(c)
	}
}

func (b *balancer) forward(client net.Conn) {
	defer func() { _ = client.Close() }()
	b.mu.Lock()
	servers := slices.Clone(b.servers)
	b.mu.Unlock()
	slices.SortStableFunc(servers, func(x, y *apiServer) int {
		switch {
		case x.up() == y.up():
			return 0
		case x.up():
			return -1
		default:
			return 1
		}
	})
	for _, s := range servers {
		up, err := net.DialTimeout("tcp", s.address, dialTimeout)
		if err != nil {
			continue
		}
		s.mu.Lock()
		s.conns[up] = struct{}{}
		s.mu.Unlock()
		join(client, up)
		s.mu.Lock()
		delete(s.conns, up)
		s.mu.Unlock()
		return
	}
	up, err := net.DialTimeout("tcp", b.fallback, 3*dialTimeout)
	if err != nil {
		b.mu.Lock()
		tell := b.quiet.pass(b.fallback)
		b.mu.Unlock()
		if tell {
			slog.Warn("no API server answers", "last tried", b.fallback, "error", err)
		}
		return
	}
	join(client, up)
}

// join copies both ways until either side ends.
func join(a, b net.Conn) {
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1]) // either end closing is the ordinary end
			done <- struct{}{}
		}()
	}
	<-done
	_ = a.Close()
	_ = b.Close()
	<-done
}
