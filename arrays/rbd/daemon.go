package rbd

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

const export = "image"

// serveDaemon starts qemu-storage-daemon on an image or one of its snapshots.
func (d *Driver) serveDaemon(ctx context.Context, s source) (lun.Device, func(), error) {
	dir, err := os.MkdirTemp("", "cleave-rbd-") // for this user alone
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(dir, "nbd")
	block := map[string]any{"driver": "rbd", "node-name": "node", "pool": s.pool, "image": s.name, "read-only": s.readOnly, "cache": map[string]bool{"direct": true}, "discard": "unmap"}
	for key, value := range map[string]string{"namespace": s.namespace, "snapshot": s.snapshot, "conf": d.o.Conf, "user": d.o.User} {
		if value != "" {
			block[key] = value
		}
	}
	serve := map[string]any{"addr": map[string]string{"type": "unix", "path": socket}}
	out := map[string]any{"type": "nbd", "id": export, "node-name": "node", "name": export, "writable": !s.readOnly}
	c, err := start(nil, nil, d.o.Daemon, "--blockdev", text(block), "--nbd-server", text(serve), "--export", text(out))
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, err
	}
	end := func() {
		c.end()
		_ = os.RemoveAll(dir)
	}
	var x *nbd.Client
	err = c.until(ctx, func() (err error) {
		x, err = nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: export})
		return err
	})
	if err != nil {
		end()
		return nil, nil, err
	}
	return x, end, nil
}

// text is what a program takes as an option in JSON. Its values always encode.
func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
