package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// authority is a certificate authority in a folder that is laid out as QEMU and
// libnbd want it: ca-cert.pem, client-cert.pem and client-key.pem.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), pool: x509.NewCertPool()}
	a.cert, a.key, _ = a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, "ca")
	a.pool.AddCert(a.cert)
	a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "client"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, "client")
	return a
}

// issue signs a certificate, by itself if there is no authority yet, and writes it.
func (a *authority) issue(t *testing.T, c *x509.Certificate, name string) (*x509.Certificate, *ecdsa.PrivateKey, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + "-cert.pem": {Type: "CERTIFICATE", Bytes: der},
		name + "-key.pem":  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// server is the configuration of a server on this host that wants its clients
// certified, too.
func (a *authority) server(t *testing.T) *tls.Config {
	_, _, cert := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, "server")
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

// serveTCP serves on a port of this host until the test ends.
func serveTCP(t *testing.T, o ServerOptions, exports ...Export) (port string) {
	t.Helper()
	s, err := NewServer(o, exports...)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// TestForeignClientsOverTLS has libnbd and QEMU read by TLS, with the certificates
// that they need and without.
func TestForeignClientsOverTLS(t *testing.T) {
	need(t, "libnbd-bin", "nbdinfo", "nbdcopy")
	need(t, "qemu-utils", "qemu-img")
	ca, other := newAuthority(t), newAuthority(t)
	m := newMemory(8 << 20)
	if _, err := m.WriteAt(fill(3, 1<<20), 2<<20); err != nil {
		t.Fatal(err)
	}
	want, _ := m.snapshot()
	config := ca.server(t)
	for _, optional := range []bool{false, true} {
		port := serveTCP(t, ServerOptions{TLS: config, TLSOptional: optional}, Export{Name: "x", Device: m})
		secure := "nbds://127.0.0.1:" + port + "/x?tls-certificates="
		plain := "nbd://127.0.0.1:" + port + "/x"
		qemu := func(dir string) []string {
			return []string{
				"info", "--object", "tls-creds-x509,id=t,endpoint=client,dir=" + dir,
				"--image-opts", "driver=nbd,host=127.0.0.1,port=" + port + ",export=x,tls-creds=t",
			}
		}
		for name, try := range map[string]struct {
			command []string
			fails   bool
		}{
			"libnbd":                  {[]string{"nbdinfo", secure + ca.dir}, false},
			"QEMU":                    {append([]string{"qemu-img"}, qemu(ca.dir)...), false},
			"libnbd, no TLS":          {[]string{"nbdinfo", plain}, !optional},
			"libnbd lists, no TLS":    {[]string{"nbdinfo", "--list", "nbd://127.0.0.1:" + port}, !optional},
			"QEMU, no TLS":            {[]string{"qemu-img", "info", plain}, !optional},
			"libnbd, other authority": {[]string{"nbdinfo", secure + other.dir}, true},
			"QEMU, other authority":   {append([]string{"qemu-img"}, qemu(other.dir)...), true},
		} {
			out, err := exec.CommandContext(t.Context(), try.command[0], try.command[1:]...).CombinedOutput()
			if (err != nil) != try.fails {
				t.Errorf("%s, optional %v: %v\n%s", name, optional, err, out)
			}
		}
		to := filepath.Join(t.TempDir(), "copy")
		run(t, "nbdcopy", secure+ca.dir, to)
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("nbdcopy by TLS: %v, or other content", err)
		}
		run(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+ca.dir, "--image-opts",
			"driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port="+port+",file.export=x,file.tls-creds=t",
			"driver=raw,file.driver=file,file.filename="+to)
	}
}
