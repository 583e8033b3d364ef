package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	restartDelay = time.Second
	stopGrace    = 5 * time.Second
)

// component is a child process that is kept running.
type component struct {
	name  string
	exe   string   // empty: this very binary, which becomes the component by its argv[0]
	args  []string // without argv[0]
	env   []string
	ready func(context.Context) bool // asked before each start; nil: start at once
	fatal bool                       // its end is the end of the whole process
	last  bool                       // stopped only after the others, which need it to stop well
}

// supervisor keeps components running until it is told to stop.
type supervisor struct {
	ctx    context.Context // done: stop
	fail   context.CancelCauseFunc
	first  sync.WaitGroup
	second sync.WaitGroup
	lasts  chan struct{} // closed when the components marked last are to stop
}

func newSupervisor(ctx context.Context, fail context.CancelCauseFunc) *supervisor {
	return &supervisor{ctx: ctx, fail: fail, lasts: make(chan struct{})}
}

func (s *supervisor) start(c component) {
	group, stop := &s.first, s.ctx.Done()
	if c.last {
		group, stop = &s.second, s.lasts
	}
	group.Add(1)
	go func() {
		defer group.Done()
		// The kernel sends a child its death signal when the thread that made it ends, so this one must stay.
		runtime.LockOSThread()
		s.keep(c, stop)
	}()
}

// wait returns when all components have ended, after the context is done.
func (s *supervisor) wait() {
	<-s.ctx.Done()
	s.first.Wait()
	close(s.lasts)
	s.second.Wait()
}

func (s *supervisor) keep(c component, stop <-chan struct{}) {
	for {
		for c.ready != nil && !c.ready(s.ctx) {
			if pause(stop, 300*time.Millisecond) {
				return
			}
		}
		ended, err := s.run(c, stop)
		if !ended {
			return
		}
		if err == nil {
			err = fmt.Errorf("without an error")
		}
		slog.Error(c.name+" exited", "error", err)
		if c.fatal {
			s.fail(fmt.Errorf("%s exited: %w", c.name, err))
			return
		}
		if pause(stop, restartDelay) {
			return
		}
	}
}

// pause waits and tells whether it is time to stop.
func pause(stop <-chan struct{}, d time.Duration) bool {
	select {
	case <-stop:
		return true
	case <-time.After(d):
		return false
	}
}

// run starts the component and waits for its end; ended is false when it was stopped on purpose.
func (s *supervisor) run(c component, stop <-chan struct{}) (ended bool, err error) {
	select {
	case <-stop:
		return false, nil
	default:
	}
	exe := c.exe
	if exe == "" {
		exe = "/proc/self/exe"
	}
	cmd := exec.Command(exe, c.args...)
	cmd.Args[0] = c.name
	cmd.Env = append(childEnvironment(), c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		return true, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	go prefixLines(c.name, r)
	slog.Info("starting " + c.name)
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return true, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return true, err
	case <-stop:
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		slog.Debug("cannot stop "+c.name, "error", err)
	}
	select {
	case <-done:
	case <-time.After(stopGrace):
		slog.Warn(c.name + " did not end in time and is killed")
		_ = cmd.Process.Kill()
		<-done
	}
	return false, nil
}

// childEnvironment keeps systemd's notification socket from the components: only this process reports.
func childEnvironment() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "WATCHDOG_") {
			out = append(out, e)
		}
	}
	return out
}

var (
	logMutex sync.Mutex
	colours  = regexp.MustCompile("\x1b\\[[0-9;]*m") // kine's; the journal would show them as binary
)

// prefixLines copies a component's output to the journal, each line under its name.
func prefixLines(name string, r io.ReadCloser) {
	defer func() { _ = r.Close() }()
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		if line = colours.ReplaceAllString(strings.TrimRight(line, "\r\n"), ""); line != "" {
			logMutex.Lock()
			fmt.Fprintf(os.Stderr, "%s: %s\n", name, line)
			logMutex.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// repeatFilter lets the same message through only now and then.
type repeatFilter struct {
	every time.Duration
	last  string
	until time.Time
}

func newRepeatFilter(every time.Duration) *repeatFilter { return &repeatFilter{every: every} }

func (f *repeatFilter) pass(message string) bool {
	if message == f.last && time.Now().Before(f.until) {
		return false
	}
	f.last, f.until = message, time.Now().Add(f.every)
	return true
}
