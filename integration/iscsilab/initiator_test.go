//go:build lab

package iscsilab

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// initiator is the least that can log in and do I/O.
type initiator struct {
	nc    net.Conn
	cmdSN uint32
	in    []byte
}

// from is an address of the loopback net, so that no single one runs out of ports.
func from(i int) net.Dialer {
	return net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(i>>8&0x7f), byte(i)%200+1)}}
}

func login(d net.Dialer, portal, name string, isid uint32) (*initiator, error) {
	nc, err := d.Dial("tcp", portal)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(5 * time.Minute))
	i := &initiator{nc: nc, cmdSN: 1, in: make([]byte, 64)}
	var h pdu.Header
	h.Set(pdu.OpLogin|0x40, 0x87)
	id := [6]byte{0x80}
	binary.BigEndian.PutUint32(id[2:], isid)
	h.SetISID(id)
	binary.BigEndian.PutUint32(h[24:], i.cmdSN)
	text := pdu.AppendText(nil, pdu.Key{Name: "InitiatorName", Value: name}, pdu.Key{Name: "TargetName", Value: iqn},
		pdu.Key{Name: "MaxRecvDataSegmentLength", Value: "262144"})
	a, err := i.exchange(&h, text)
	if err == nil && (a.Opcode() != pdu.OpLoginResp || a[36] != 0) {
		err = fmt.Errorf("login: %s status %d", a, a[36])
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return i, nil
}

func (i *initiator) send(h *pdu.Header, data []byte) error {
	h.SetDataLen(len(data))
	out := append(append(make([]byte, 0, 52+len(data)), h[:]...), data...)
	_, err := i.nc.Write(append(out, make([]byte, -len(data)&3)...))
	return err
}

func (i *initiator) recv() (*pdu.Header, error) {
	h := (*pdu.Header)(i.in)
	if _, err := io.ReadFull(i.nc, h[:]); err != nil {
		return nil, err
	}
	n := (h.DataLen() + 3) &^ 3
	if pdu.HeaderLen+n > len(i.in) {
		i.in = append(i.in, make([]byte, n)...)
		h = (*pdu.Header)(i.in)
	}
	_, err := io.ReadFull(i.nc, i.in[pdu.HeaderLen:pdu.HeaderLen+n])
	return h, err
}

func (i *initiator) exchange(h *pdu.Header, data []byte) (*pdu.Header, error) {
	if err := i.send(h, data); err != nil {
		return nil, err
	}
	return i.recv()
}

// start sends a READ(10) or WRITE(10); the data of a write goes by R2T.
func (i *initiator) start(itt uint32, write bool, block uint32, bytes int) error {
	var h pdu.Header
	op, flags := byte(0x28), byte(pdu.FlagFinal|pdu.FlagRead)
	if write {
		op, flags = 0x2a, pdu.FlagFinal|pdu.FlagWrite
	}
	h.Set(pdu.OpSCSICommand, flags)
	h.SetITT(itt)
	binary.BigEndian.PutUint32(h[20:], uint32(bytes))
	binary.BigEndian.PutUint32(h[24:], i.cmdSN)
	i.cmdSN++
	h[32] = op
	binary.BigEndian.PutUint32(h[34:], block)
	binary.BigEndian.PutUint16(h[39:], uint16(bytes/512))
	return i.send(&h, nil)
}

// next handles PDUs until a command has ended, and returns its tag and status.
func (i *initiator) next(payload []byte) (itt uint32, status byte, err error) {
	for {
		h, err := i.recv()
		if err != nil {
			return 0, 0, err
		}
		switch h.Opcode() {
		case pdu.OpR2T:
			off, left, tag, ttt := h.Offset(), int(h.Residual()), h.ITT(), h.TTT() // the desired length stands there
			for sn := uint32(0); left > 0; sn++ {
				m := min(left, 64<<10, len(payload))
				var d pdu.Header
				d.Set(pdu.OpDataOut, 0)
				if m == left {
					d.SetFlags(pdu.FlagFinal)
				}
				d.SetITT(tag)
				d.SetTTT(ttt)
				d.SetDataSN(sn)
				d.SetOffset(off)
				if err := i.send(&d, payload[:m]); err != nil {
					return 0, 0, err
				}
				off, left = off+uint32(m), left-m
			}
		case pdu.OpSCSIResponse:
			return h.ITT(), h[3], nil
		case pdu.OpDataIn:
			if h.Flags()&pdu.FlagStatus != 0 {
				return h.ITT(), h[3], nil
			}
		case pdu.OpNopIn:
			if h.TTT() == pdu.NoTag {
				continue
			}
			var a pdu.Header
			a.Set(pdu.OpNopOut|0x40, pdu.FlagFinal)
			a.SetITT(pdu.NoTag)
			a.SetTTT(h.TTT())
			binary.BigEndian.PutUint32(a[24:], i.cmdSN)
			if err := i.send(&a, nil); err != nil {
				return 0, 0, err
			}
		default:
			return 0, 0, fmt.Errorf("unexpected %s", h)
		}
	}
}

// ready passes over unit attentions.
func (i *initiator) ready() error {
	for range 100 {
		if err := i.start(1, false, 0, 512); err != nil {
			return err
		}
		if _, status, err := i.next(nil); err != nil || status == 0 {
			return err
		}
	}
	return fmt.Errorf("not ready after 100 reads")
}

func (i *initiator) logout() error {
	defer i.nc.Close()
	var h pdu.Header
	h.Set(pdu.OpLogout|0x40, pdu.FlagFinal)
	binary.BigEndian.PutUint32(h[24:], i.cmdSN)
	a, err := i.exchange(&h, nil)
	if err == nil && (a.Opcode() != pdu.OpLogoutResp || a[2] != 0) {
		err = fmt.Errorf("logout: %s response %d", a, a[2])
	}
	return err
}
