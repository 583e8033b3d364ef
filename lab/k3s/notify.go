package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
)

// notifyReady tells systemd that the service is up, when systemd wants to know.
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if err := sendNotify(path, "READY=1"); err != nil {
		slog.Warn("cannot tell systemd that k3s is ready", "error", err)
	}
}

func sendNotify(path, message string) error {
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprint(c, message); err != nil {
		return err
	}
	return nil
}
