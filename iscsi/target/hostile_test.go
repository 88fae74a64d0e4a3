package target

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// Each row sends what no initiator should, before login or after; the connection
// may go, the server may not.
func TestHostilePackets(t *testing.T) {
	l := newLab(t, Options{WriteMemory: 1 << 20})
	l.add(newDisk(16 << 20))

	sn := uint32(1) // CmdSN of the next request
	bhs := func(op pdu.Opcode, flags byte) *pdu.Header {
		var h pdu.Header
		h.Set(op, flags)
		h.SetITT(0x1234)
		binary.BigEndian.PutUint32(h[24:], sn)
		return &h
	}
	before := map[string]func(r *raw){
		"nothing":       func(r *raw) {},
		"half a header": func(r *raw) { _, _ = r.nc.Write(make([]byte, 20)) },
		"HTTP": func(r *raw) {
			_, _ = io.WriteString(r.nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"+string(make([]byte, 100)))
		},
		"all ones":        func(r *raw) { _, _ = r.nc.Write(bytes.Repeat([]byte{0xff}, 4096)) },
		"command first":   func(r *raw) { _ = r.send(bhs(pdu.OpSCSICommand, ioRead), nil) },
		"unknown TSIH":    func(r *raw) { h := bhs(pdu.OpLogin, 0x87); h.SetTSIH(0xbeef); _ = r.send(h, nil) },
		"stage 2":         func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0x8b), nil) },
		"back to stage 0": func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0x84), nil) },
		"T and C":         func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0xc7), nil) },
		"version 9":       func(r *raw) { h := bhs(pdu.OpLogin, 0x87); h[2], h[3] = 9, 9; _ = r.send(h, nil) },
		"16 MiB of login": func(r *raw) {
			h := bhs(pdu.OpLogin, 0x87)
			h[5], h[6], h[7] = 0xff, 0xff, 0xff
			_, _ = r.nc.Write(h[:])
		},
		"text without end": func(r *raw) {
			piece := bytes.Repeat([]byte{'A'}, 8000)
			for range 20 {
				if r.send(bhs(pdu.OpLogin, 0x44), piece) != nil {
					return
				}
			}
		},
		"pieces without end": func(r *raw) {
			for range 200 {
				if r.send(bhs(pdu.OpLogin, 0x44), nil) != nil {
					return
				}
			}
		},
		"not text": func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0x87), []byte{1, 2, 3, 0, 0, 4}) },
		"no names": func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0x87), nil) },
		"login without end": func(r *raw) {
			for range 100 {
				if r.send(bhs(pdu.OpLogin, 0x04), pdu.AppendText(nil, names(alice)...)) != nil {
					return
				}
			}
		},
		"half of CHAP, again and again": func(r *raw) {
			for range 100 {
				if r.send(bhs(pdu.OpLogin, 0x00), pdu.AppendText(nil, kv("CHAP_A", "5")...)) != nil {
					return
				}
			}
		},
		"5000 keys":           func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0x87), bytes.Repeat([]byte("A=\x00"), 2700)) },
		"AHS longer than all": func(r *raw) { h := bhs(pdu.OpLogin, 0x87); h[4] = 255; _, _ = r.nc.Write(h[:]) },
	}
	held := heap(t)
	for name, f := range before {
		t.Run("before login/"+name, func(t *testing.T) {
			r := l.dial()
			f(r)
			_ = r.nc.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, r.nc)
		})
	}
	l.alive(0)

	cmd := func(edtl uint32, flags byte, cdb ...byte) *pdu.Header {
		h := bhs(pdu.OpSCSICommand, flags)
		binary.BigEndian.PutUint32(h[20:], edtl)
		copy(h[32:], cdb)
		return h
	}
	data := func(ttt, sn, off uint32, flags byte) *pdu.Header {
		h := bhs(pdu.OpDataOut, flags)
		h.SetTTT(ttt)
		h.SetDataSN(sn)
		h.SetOffset(off)
		return h
	}
	write := cdb10(0x2a, 0, 2048)
	// r2t sends a write of 1 MiB and returns the tag of the first R2T.
	r2t := func(r *raw) uint32 {
		_ = r.send(cmd(1<<20, ioWrite, write...), nil)
		for {
			h, _, err := r.recv()
			if err != nil {
				return 0
			}
			if h.Opcode() == pdu.OpR2T {
				return h.TTT()
			}
		}
	}
	after := map[string]func(r *raw){
		"unknown opcode":      func(r *raw) { _ = r.send(bhs(0x1f, 0x80), nil) },
		"target's opcode":     func(r *raw) { _ = r.send(bhs(pdu.OpR2T, 0x80), nil) },
		"SNACK":               func(r *raw) { _ = r.send(bhs(pdu.OpSNACK, 0x80), nil) },
		"login again":         func(r *raw) { _ = r.send(bhs(pdu.OpLogin, 0x87), nil) },
		"EDTL 4 GiB-1, read":  func(r *raw) { _ = r.send(cmd(0xffffffff, ioRead, cdb10(0x28, 0, 1)...), nil) },
		"EDTL 4 GiB-1, write": func(r *raw) { _ = r.send(cmd(0xffffffff, ioWrite, cdb10(0x2a, 0, 1)...), nil) },
		"READ(16) of 4 G blocks": func(r *raw) {
			_ = r.send(cmd(0xffffffff, ioRead, 0x88, 10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), nil)
		},
		"UNMAP without data":   func(r *raw) { _ = r.send(cmd(0, pdu.FlagFinal, cdb10(0x42, 0, 24)...), nil) },
		"write without data":   func(r *raw) { _ = r.send(cmd(0, pdu.FlagFinal, write...), nil) },
		"both directions":      func(r *raw) { _ = r.send(cmd(512, 0xe0, cdb10(0x28, 0, 1)...), nil) },
		"data on a read":       func(r *raw) { _ = r.send(cmd(512, ioRead, cdb10(0x28, 0, 1)...), make([]byte, 512)) },
		"more data than EDTL":  func(r *raw) { _ = r.send(cmd(100, ioWrite, write...), make([]byte, 512)) },
		"more than FirstBurst": func(r *raw) { _ = r.send(cmd(1<<20, ioWrite, write...), make([]byte, 128<<10)) },
		"16 MiB-1 segment": func(r *raw) {
			h := cmd(1<<20, ioWrite, write...)
			h[5], h[6], h[7] = 0xff, 0xff, 0xff
			_, _ = r.nc.Write(h[:])
		},
		"lying AHS": func(r *raw) {
			h := cmd(0, pdu.FlagFinal)
			h[4] = 2
			_, _ = r.nc.Write(append(h[:], 0xff, 0xff, 1, 0, 0, 0, 0, 0))
		},
		"AHS of length 0": func(r *raw) {
			h := cmd(0, pdu.FlagFinal)
			h[4] = 2
			_, _ = r.nc.Write(append(h[:], 0, 0, 1, 0, 0, 0, 0, 0))
		},
		"extended CDB": func(r *raw) {
			h := cmd(0, pdu.FlagFinal, 0x7f)
			h[4] = 2
			_, _ = r.nc.Write(append(h[:], 0, 5, 1, 0, 1, 2, 3, 4))
		},
		"CmdSN far ahead": func(r *raw) {
			h := cmd(0, pdu.FlagFinal)
			binary.BigEndian.PutUint32(h[24:], 0x7fffffff)
			_ = r.send(h, nil)
		},
		"CmdSN with a gap":    func(r *raw) { h := cmd(0, pdu.FlagFinal); binary.BigEndian.PutUint32(h[24:], sn+2); _ = r.send(h, nil) },
		"tag in use":          func(r *raw) { r2t(r); h := cmd(1<<20, ioWrite, write...); h[27]++; _ = r.send(h, nil) },
		"reserved tag":        func(r *raw) { h := cmd(0, pdu.FlagFinal); h.SetITT(pdu.NoTag); _ = r.send(h, nil) },
		"Data-Out of nothing": func(r *raw) { _ = r.send(data(7, 0, 0, 0x80), make([]byte, 512)) },
		"Data-Out, wrong tag": func(r *raw) { ttt := r2t(r); _ = r.send(data(ttt+77, 0, 0, 0x80), make([]byte, 512)) },
		"Data-Out past EDTL":  func(r *raw) { ttt := r2t(r); _ = r.send(data(ttt, 0, 0xfffffff0, 0x80), make([]byte, 512)) },
		"Data-Out twice": func(r *raw) {
			ttt := r2t(r)
			for range 2 {
				_ = r.send(data(ttt, 0, 0, 0), make([]byte, 4096))
			}
		},
		"Data-Out, overlapping": func(r *raw) {
			ttt := r2t(r)
			_ = r.send(data(ttt, 0, 0, 0), make([]byte, 4096))
			_ = r.send(data(ttt, 1, 2048, 0), make([]byte, 4096))
		},
		"Data-Out, early F":       func(r *raw) { ttt := r2t(r); _ = r.send(data(ttt, 0, 0, 0x80), make([]byte, 512)) },
		"Data-Out, unsolicited":   func(r *raw) { r2t(r); _ = r.send(data(pdu.NoTag, 0, 0, 0x80), make([]byte, 512)) },
		"unsolicited, not agreed": func(r *raw) { _ = r.send(cmd(1<<20, pdu.FlagWrite, write...), nil) },
		"text, wrong tag":         func(r *raw) { h := bhs(pdu.OpText, 0x80); h.SetTTT(99); _ = r.send(h, nil) },
		"text F and C":            func(r *raw) { h := bhs(pdu.OpText, 0xc0); h.SetTTT(pdu.NoTag); _ = r.send(h, []byte("A=b")) },
		"text that isn't":         func(r *raw) { h := bhs(pdu.OpText, 0x80); h.SetTTT(pdu.NoTag); _ = r.send(h, []byte{0xff}) },
		"TMF 127":                 func(r *raw) { _ = r.send(bhs(pdu.OpTaskMgmt, 0xff), nil) },
		"TMF of another LUN":      func(r *raw) { h := bhs(pdu.OpTaskMgmt, 0x85); h.SetLUN(77 << 48); _ = r.send(h, nil) },
		"logout of another CID":   func(r *raw) { h := bhs(pdu.OpLogout, 0x81); h[20] = 9; _ = r.send(h, nil) },
		"ping of 256 KiB":         func(r *raw) { h := bhs(pdu.OpNopOut, 0x80); _ = r.send(h, make([]byte, 256<<10)) },
		"cut in the data": func(r *raw) {
			h := cmd(65536, ioWrite, cdb10(0x2a, 0, 128)...)
			h[6] = 0xff
			_, _ = r.nc.Write(append(h[:], make([]byte, 100)...))
		},
		"silence after R2T":   func(r *raw) { r2t(r) },
		"DataSN out of order": func(r *raw) { ttt := r2t(r); _ = r.send(data(ttt, 5, 0, 0), make([]byte, 512)) },
		"Data-Out of nothing, again and again": func(r *raw) {
			ttt := r2t(r)
			for i := range uint32(5000) {
				if r.send(data(ttt, i, 0, 0), nil) != nil {
					return
				}
			}
		},
		"writes aborted before their data": func(r *raw) {
			for i := range uint32(300) {
				h := cmd(1<<20, ioWrite, write...)
				h.SetITT(i)
				binary.BigEndian.PutUint32(h[24:], sn+i)
				a := bhs(pdu.OpTaskMgmt|0x40, 0x80|tmfAbortTask)
				a.SetITT(1 << 20)
				a.SetTTT(i)
				binary.BigEndian.PutUint32(a[24:], sn+i)
				if r.send(h, make([]byte, 65536)) != nil || r.send(a, nil) != nil {
					return
				}
			}
		},
		"abort of itself": func(r *raw) { h := bhs(pdu.OpTaskMgmt, 0x80|tmfAbortTask); h.SetTTT(h.ITT()); _ = r.send(h, nil) },
		"a storm of what is rejected": func(r *raw) {
			for range 5000 {
				if r.send(bhs(0x1e|0x40, 0x80), []byte("nonsense")) != nil {
					return
				}
			}
		},
		"text that goes on and on": func(r *raw) {
			ttt := uint32(pdu.NoTag)
			for range 200 {
				h := bhs(pdu.OpText|0x40, pdu.FlagContinue)
				h.SetTTT(ttt)
				if r.send(h, bytes.Repeat([]byte("A"), 8000)) != nil {
					return
				}
				a, _, err := r.recv()
				if err != nil {
					return
				}
				ttt = a.TTT()
			}
		},
		"SendTargets 256 times": func(r *raw) {
			h := bhs(pdu.OpText, 0x80)
			h.SetTTT(pdu.NoTag)
			_ = r.send(h, bytes.Repeat([]byte("SendTargets=\x00"), 256))
		},
		"a key of 200 KiB": func(r *raw) {
			h := bhs(pdu.OpText, 0x80)
			h.SetTTT(pdu.NoTag)
			_ = r.send(h, append([]byte("X="), bytes.Repeat([]byte("x"), 200<<10)...))
		},
		"pings without end": func(r *raw) {
			for range 5000 {
				if r.send(bhs(pdu.OpNopOut|0x40, 0x80), make([]byte, 1024)) != nil {
					return
				}
			}
		},
		"writes of one block that are never finished": func(r *raw) {
			for i := range uint32(1000) {
				h := cmd(512, ioWrite|0x40, cdb10(0x2a, 0, 1)...)
				h[0] |= 0x40
				h.SetITT(i)
				h.SetFlags(ioWrite)
				if r.send(h, nil) != nil {
					return
				}
			}
		},
		"odd LUN field": func(r *raw) { h := cmd(0, pdu.FlagFinal); h.SetLUN(0xffffffffffffffff); _ = r.send(h, nil) },
	}
	for name, f := range after {
		t.Run("after login/"+name, func(t *testing.T) {
			r := l.login(alice)
			r.ready(0)
			sn = r.cmdSN
			f(r)
			_ = r.nc.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, r.nc)
		})
	}
	l.alive(0)
	eventually(t, "no session is left", func() bool { return len(l.s.Sessions()) == 0 })
	if now := heap(t); now > held+4<<20 {
		t.Errorf("heap of %d bytes before, %d after", held, now)
	}
}

// heap is what is in use, without what only pools hold.
func heap(t testing.TB) uint64 {
	t.Helper()
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Digests that are wrong end the connection, and what they cover is not used.
func TestWrongDigests(t *testing.T) {
	l := newLab(t, Options{})
	d := newDisk(1 << 20)
	l.add(d)
	crc := []pdu.Key{{Name: "HeaderDigest", Value: "CRC32C"}, {Name: "DataDigest", Value: "CRC32C"}}
	for _, at := range []int{20, 60, 48 + 4 + 512} {
		r := l.login(alice, crc...)
		r.ready(0)
		var h pdu.Header
		h.Set(pdu.OpSCSICommand, ioWrite)
		h.SetITT(77)
		binary.BigEndian.PutUint32(h[20:], 512)
		binary.BigEndian.PutUint32(h[24:], r.cmdSN)
		copy(h[32:], cdb10(0x2a, 0, 1))
		h.SetDataLen(512)
		out := append(append([]byte(nil), h[:]...), 0, 0, 0, 0)
		pdu.PutDigest(out[48:], pdu.Digest(0, h[:]))
		p := bytes.Repeat([]byte{0xaa}, 512)
		out = append(append(out, p...), 0, 0, 0, 0)
		pdu.PutDigest(out[len(out)-4:], pdu.Digest(0, p))
		out[at] ^= 1
		_, err := r.nc.Write(out)
		r.must(err)
		if at > 52 { // of data: the initiator hears of it (RFC 7143 section 7.8)
			if a, _, err := r.recv(); err != nil || a.Opcode() != pdu.OpReject || a[2] != rejectDataDigest {
				t.Errorf("%v %s reason %d, want a Reject for the data digest", err, &a, a[2])
			}
		}
		r.gone()
	}
	there := make([]byte, d.Size())
	if _, err := d.ReadAt(there, 0); err != nil || !bytes.Equal(there, make([]byte, len(there))) {
		t.Error("data with a wrong digest was written")
	}
	l.alive(0)
}

// Logins that never finish are bounded in number and time.
func TestHalfOpenLogins(t *testing.T) {
	l := newLab(t, Options{MaxLogins: 8, LoginTimeout: 300 * time.Millisecond})
	l.add(newDisk(1 << 20))
	runtime.GC()
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	var conns []net.Conn
	for range 500 {
		nc, err := net.Dial("tcp", l.portal.String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, nc)
	}
	runtime.GC()
	runtime.ReadMemStats(&during)
	if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	for _, nc := range conns {
		_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
		var ne net.Error
		if _, err := nc.Read(make([]byte, 1)); err == nil || errors.As(err, &ne) && ne.Timeout() {
			t.Fatalf("a half-open login is still there: %v", err)
		}
		nc.Close()
	}
	eventually(t, "a login gets through again", func() bool {
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		return len(l.s.joining) == 0
	})
	l.alive(0)
}
