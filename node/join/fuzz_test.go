package join

import (
	"bytes"
	"net"
	"testing"
	"time"
)

func FuzzParseToken(f *testing.F) {
	f.Add("moot1.00.11.22")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if back, err := ParseToken(token.Text()); err != nil || back != token {
			t.Errorf("%q does not read back: %v", text, err)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	var good bytes.Buffer
	if err := writeMessage(&good, Request{Name: "n2", Time: time.Unix(1, 0).UTC()}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(_ *testing.T, data []byte) {
		var req Request
		_ = readMessage(bytes.NewReader(data), maxRequestBytes, &req)
		var a answer
		if readMessage(bytes.NewReader(data), maxAnswerBytes, &a) == nil {
			_, _ = (&Dialer{}).accept(a, time.Unix(1, 0))
		}
	})
}

// FuzzServe gives the member what a stranger may send: it neither breaks nor
// lets it in.
func FuzzServe(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte("\x00\x00\x00\x49" + `{"protocol":1,"token":"0011223344.00112233445566778899aabbccddeeff","name":1}`))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	m := newMemberFor(f)
	server, err := NewServer(m.cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m.clock.add(time.Minute) // no source has tried too often
		client, remote := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			server.Serve(remote)
		}()
		go func() { // the member may hang up before all is read
			_, _ = client.Write(data)
			_, _ = client.Write(make([]byte, maxRequestBytes)) // whatever length it claimed
			_ = client.Close()
		}()
		var a answer
		err := readMessage(client, maxAnswerBytes, &a)
		_ = client.Close()
		<-done
		if err == nil && a.Grant != nil {
			t.Error("a stranger was let in")
		}
	})
}
