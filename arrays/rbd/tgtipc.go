package rbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// tgtRequest is struct tgtadm_req of tgt 1.0.30 and later, in the host's byte order
// (usr/tgtadm.h).
type tgtRequest struct {
	Mode, Op   uint32
	LLD        [64]byte
	Len        uint32 // with what follows
	Target     int32
	Session    uint64
	LUN        uint64
	Connection uint32
	Host       uint32
	DeviceType uint32
	Direction  uint32
	Pack       uint32
	Force      uint32
}

const (
	tgtModeAccount = 7
	tgtOpNew       = 0
)

// account makes an account. tgtadm takes its secret as an argument, which every user
// of this host could read; the socket that tgtadm uses is for this one alone. A
// tgtd that understands it otherwise has no such account: to bind it fails then.
func (t *tgt) account(ctx context.Context, c driver.CHAP) error {
	params := "user=" + c.User + ",password=" + string(c.Secret) + "\x00"
	r := tgtRequest{Mode: tgtModeAccount, Op: tgtOpNew, LLD: [64]byte{'i', 's', 'c', 's', 'i'}}
	r.Len = uint32(binary.Size(r) + len(params))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, r); err != nil {
		return err
	}
	b.WriteString(params)
	var dial net.Dialer
	conn, err := dial.DialContext(ctx, "unix", t.socket+".0") // of control port 0
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(b.Bytes()); err != nil {
		return err
	}
	var answer struct{ Err, Len uint32 }
	if err := binary.Read(conn, binary.NativeEndian, &answer); err != nil {
		return driver.Errorf(driver.Unreachable, "tgtd takes no account: %w", err)
	}
	if answer.Err != 0 {
		return driver.Errorf(driver.Unreachable, "tgtd takes no account: its error %d", answer.Err)
	}
	return nil
}
