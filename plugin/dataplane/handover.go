package dataplane

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// handOver gives a snapshot's descriptor to another process of this host. The
// snapshot is in use until the connection ends, whoever ends it.
func (p *plane) handOver(w http.ResponseWriter, r *http.Request) {
	p.handed.Add(1)
	defer p.handed.Done()
	id := driver.SnapshotID(r.PathValue("id"))
	if r.Header.Get("Upgrade") != remote.Protocol {
		p.reply(w, nil, driver.Errorf(driver.InvalidRequest, "a snapshot is opened by upgrading to %s", remote.Protocol))
		return
	}
	s, err := p.array.OpenSnapshot(id, "a process of this host")
	if err != nil {
		p.reply(w, nil, err)
		return
	}
	defer s.Close()
	h, ok := w.(http.Hijacker)
	f := s.File()
	if !ok || f == nil {
		p.reply(w, nil, driver.Errorf(driver.NotSupported, "snapshot %s has no descriptor to hand over", id))
		return
	}
	conn, _, err := h.Hijack()
	if err != nil {
		p.reply(w, nil, err)
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	defer stop()
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	head := fmt.Sprintf("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n%s: %d\r\n\r\n",
		remote.Protocol, remote.HeaderIdentity, s.Identity(), remote.HeaderSize, s.Size())
	if _, _, err := u.WriteMsgUnix([]byte(head), unix.UnixRights(int(f.Fd())), nil); err != nil {
		p.log.Warn("handing a snapshot's descriptor over", "snapshot", id, "error", err)
		return
	}
	_, _ = io.Copy(io.Discard, u) // until the other side is done
	s.Close()                     // before conn: the other side waits for that
}
