package target

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// FuzzFullFeature sends anything to a session.
func FuzzFullFeature(f *testing.F) {
	var h pdu.Header
	for _, op := range []pdu.Opcode{pdu.OpNopOut, pdu.OpSCSICommand, pdu.OpTaskMgmt, pdu.OpText, pdu.OpDataOut, pdu.OpLogout} {
		h.Set(op, 0x80)
		binary.BigEndian.PutUint32(h[24:], 3)
		f.Add(bytes.Clone(h[:]))
	}
	h.Set(pdu.OpSCSICommand, ioWrite)
	binary.BigEndian.PutUint32(h[24:], 3)
	binary.BigEndian.PutUint32(h[20:], 1<<20)
	copy(h[32:], cdb10(0x2a, 0, 2048))
	f.Add(bytes.Clone(h[:]))
	l := newLab(f, Options{})
	l.add(newDisk(4 << 20))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := l.dialFor(t)
		defer r.nc.Close()
		r.start(alice)
		r.ready(0) // the unit attention and this: CmdSN 3 is next
		_, _ = r.nc.Write(in)
		_ = r.nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, r.nc); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Fatal("hangs")
			}
		}
	})
}

// FuzzLogin sends anything as a first login.
func FuzzLogin(f *testing.F) {
	f.Add(byte(0x87), pdu.AppendText(nil, names(alice)...))
	f.Add(byte(0x81), pdu.AppendText(nil, names(alice, pdu.Key{Name: "AuthMethod", Value: "CHAP,None"})...))
	l := newLab(f, Options{})
	l.add(newDisk(1 << 20))
	f.Fuzz(func(t *testing.T, flags byte, text []byte) {
		r := l.dialFor(t)
		defer r.nc.Close()
		var h pdu.Header
		h.Set(pdu.OpLogin|0x40, flags)
		if r.send(&h, text[:min(len(text), 1<<16)]) != nil {
			return
		}
		_ = r.nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, r.nc); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Fatal("hangs")
			}
		}
	})
}

// FuzzDataOut sends a write and then Data-Out PDUs with fields of the fuzzer's
// choice, eight bytes each: which tag, DataSN, offset in units of 512, length, F.
// Whatever comes, the medium holds what was sent or what was there, and the
// session answers or ends.
func FuzzDataOut(f *testing.F) {
	good := []byte{}
	for i := range 8 {
		final := byte(0)
		if i == 7 {
			final = 1
		}
		good = append(good, 0, byte(i), byte(i*8), 8, final, 0, 0, 0)
	}
	f.Add(byte(0), uint16(64), good)
	f.Add(byte(1), uint16(64), good)
	f.Add(byte(0), uint16(64), []byte{0, 1, 0, 8, 0, 0, 0, 0}) // DataSN too high
	f.Add(byte(0), uint16(64), []byte{1, 0, 0, 8, 0, 0, 0, 0}) // another tag
	f.Add(byte(0), uint16(64), []byte{0, 0, 60, 8, 1, 0, 0, 0})
	f.Add(byte(2), uint16(1), []byte{2, 0, 0, 255, 1, 0, 0, 0})
	l := newLab(f, Options{})
	d := newDisk(1 << 20)
	l.add(d)
	payload := bytes.Repeat([]byte{0xda}, 256*512)
	f.Fuzz(func(t *testing.T, how byte, blocks uint16, in []byte) {
		blocks = blocks%512 + 1
		r := l.dialFor(t)
		defer r.nc.Close()
		keys := kv("MaxBurstLength", "16384", "FirstBurstLength", "4096", "MaxOutstandingR2T", "4")
		if how&1 != 0 {
			keys = append(keys, kv("InitialR2T", "No")...)
		}
		r.start(alice, keys...)
		r.ready(0)
		flags := byte(ioWrite)
		if how&1 != 0 && how&2 != 0 {
			flags = pdu.FlagWrite // unsolicited data is to come
		}
		itt := r.command(0, flags, cdb10(0x2a, 0, blocks), uint32(blocks)*512, nil)
		ttt := uint32(1) // the first that is given out, in order after it
		var h pdu.Header
		for ; len(in) >= 8; in = in[8:] {
			h.Set(pdu.OpDataOut, 0)
			if in[4]&1 != 0 {
				h.SetFlags(pdu.FlagFinal)
			}
			h.SetITT(itt + uint32(in[5]))
			switch in[0] % 3 {
			case 0:
				h.SetTTT(ttt + uint32(in[6]))
			case 1:
				h.SetTTT(ttt + 1000)
			case 2:
				h.SetTTT(pdu.NoTag)
			}
			h.SetDataSN(uint32(in[1]))
			h.SetOffset(uint32(in[2])*512 + uint32(in[7]))
			if r.send(&h, payload[:int(in[3])*512]) != nil {
				break
			}
		}
		_ = r.nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, r.nc); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Fatal("hangs")
			}
		}
		for i, b := range d.content() {
			if b != 0 && b != 0xda {
				t.Fatalf("byte %d is %#x, which nobody sent", i, b)
			}
		}
	})
}
