package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/kubernetes/test/utils/image"
)

// Accounts of the images. The pair 1000 and 50000 is what the suite expects
// agnhost to have: a user in a supplementary group by the image's own word.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
adm:x:4:
www-data:x:33:
nogroup:x:65534:
`
	agnhostPasswd = passwd + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
	agnhostGroup  = group + "user-defined-in-image:x:1000:\n" +
		"group-defined-in-image:x:50000:user-defined-in-image\n"
)

// specs lists the images, as the Dockerfiles in upstream's test/images
// describe them.
func specs(bin, src string) ([]spec, error) {
	in := func(elem ...string) string { return filepath.Join(append([]string{src, "test/images"}, elem...)...) }
	program := func(name, path string) file {
		return file{path: path, from: filepath.Join(bin, name), mode: 0o755}
	}
	// Debian's dash drops variables with a dash in their names, Alpine's shell
	// passes them on, and so does bash.
	bash := file{path: "usr/bin/sh", link: "bash"}
	// A spec knows the image it mounts by the name of Alpine.
	release := file{path: "etc/os-release", text: "NAME=\"Alpine Linux\"\nID=debian\n"}
	accounts := []file{{path: "etc/passwd", text: passwd}, {path: "etc/group", text: group}}
	with := func(more ...file) []file {
		return append(dirs("tmp", "root", "home", "var"), append(more, accounts...)...)
	}

	busybox, err := busyboxFiles(filepath.Join(bin, "busybox"))
	if err != nil {
		return nil, err
	}
	agnhost := func(id image.ImageID, more ...file) spec {
		return spec{
			id: id, debian: true, entrypoint: []string{"/agnhost"}, cmd: []string{"pause"},
			files: append([]file{
				program("agnhost", "agnhost"), {path: "agnhost-2", link: "agnhost"},
				{path: "uploads", dir: true, mode: 0o755},
				{path: "localhost.crt", from: in("agnhost/porter/localhost.crt")},
				{path: "localhost.key", from: in("agnhost/porter/localhost.key")},
				{path: "etc/passwd", text: agnhostPasswd}, {path: "etc/group", text: agnhostGroup},
				bash, release,
			}, more...),
		}
	}
	nginx := func(id image.ImageID) spec {
		return spec{
			id: id, debian: true, cmd: []string{"nginx", "-g", "daemon off;"},
			files: []file{
				{path: "var/log/nginx/access.log", link: "/dev/stdout"},
				{path: "var/log/nginx/error.log", link: "/dev/stderr"},
			},
		}
	}
	kitten := agnhost(image.Kitten, file{path: "kitten.jpg", from: in("kitten/html/kitten.jpg")},
		file{path: "data.json", from: in("kitten/html/data.json")})
	nautilus := agnhost(image.Nautilus, file{path: "nautilus.jpg", from: in("nautilus/html/nautilus.jpg")},
		file{path: "data.json", from: in("nautilus/html/data.json")})
	kitten.cmd, nautilus.cmd = []string{"test-webserver"}, []string{"test-webserver"}

	return []spec{
		agnhost(image.Agnhost),
		agnhost(image.AgnhostPrev),
		kitten,
		nautilus,
		nginx(image.Nginx),
		nginx(image.NginxNew),
		{id: image.GlibcDnsTesting, debian: true, cmd: []string{"bash"}},
		{id: image.IpcUtils, debian: true, cmd: []string{"sh"}},
		{id: image.Nonewprivs, debian: true, cmd: []string{"nnp"},
			files: []file{{path: "usr/local/bin/nnp", from: filepath.Join(bin, "nnp"), mode: 0o6755}}},
		{id: image.BusyBox, cmd: []string{"sh"}, files: with(busybox...)},
		{id: image.NonRoot, cmd: []string{"sh"}, user: "1234", files: with(busybox...)},
		{id: image.Pause, entrypoint: []string{"/pause"}, user: "65535:65535", files: []file{program("pause", "pause")}},
		{id: image.Etcd, files: with(program("etcd", "usr/local/bin/etcd"))},
		{id: image.APIServer, entrypoint: []string{"/sample-apiserver"},
			files: with(program("sample-apiserver", "sample-apiserver"))},
	}, nil
}

// busyboxFiles is busybox with a link for each of its commands.
func busyboxFiles(program string) ([]file, error) {
	out, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the commands of busybox: %w", err)
	}
	files := []file{{path: "bin/busybox", from: program, mode: 0o755}}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			files = append(files, file{path: "bin/" + applet, link: "busybox"})
		}
	}
	return append(files, file{path: "usr/bin/env", link: "../../bin/env"}), nil
}

// dirs are plain directories; tmp is everyone's.
func dirs(names ...string) []file {
	var files []file
	for _, n := range names {
		mode := int64(0o755)
		if n == "tmp" {
			mode = 0o1777
		}
		files = append(files, file{path: n, dir: true, mode: mode})
	}
	return files
}
